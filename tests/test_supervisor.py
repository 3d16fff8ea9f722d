"""When a worker or its program ends, no process of the worker is left, whatever either of them is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llmquant.executors import supervisor
from llmquant.executors.local.executor import LocalExecutor
from llmquant.executors.worker_process import is_held, make_folder, stop, stop_other

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the supervisor is POSIX only")

# A server of an evaluator's: in a session of its own, its parent gone; `deaf` to SIGTERM.
SERVER = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""
WORKER = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", {SERVER!r}, *sys.argv[1:]])
while not open(sys.argv[1]).read():
    time.sleep(0.01)
{{then}}
"""
HOLDS_THE_LOCK = "import ctypes; ctypes.PyDLL(None).sleep(600)"


def supervised(folder: Path, then: str, manners: str = "polite") -> subprocess.Popen:
    """Start a worker under the supervisor; it starts a server and continues with `then`."""
    (folder / "server").touch()
    command = [sys.executable, "-c", WORKER.format(then=then), str(folder / "server"), manners]
    return subprocess.Popen(
        [sys.executable, "-P", supervisor.__file__, str(folder), *command],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def server_of(folder: Path) -> psutil.Process:
    wait_until((folder / "server").read_text)
    return psutil.Process(int((folder / "server").read_text()))


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    path.mkdir()
    return path


@pytest.mark.parametrize(("then", "code"), [("sys.exit(3)", 3), ("import os; os.abort()", -signal.SIGABRT)])
def test_what_a_worker_left_running_is_ended_with_it(folder: Path, then: str, code: int):
    """A server in a session of its own ends when the worker does; how the worker ended is passed on."""
    process = supervised(folder, then)
    server = server_of(folder)
    assert process.wait(timeout=120) == code
    assert gone(server)


def test_a_worker_that_holds_pythons_lock_ends_with_its_program(folder: Path):
    """When the program is gone, worker and server are, and the folder with the log too."""
    process = supervised(folder, HOLDS_THE_LOCK)
    server = server_of(folder)
    worker = psutil.Process(process.pid).children()[0]
    process.stdin.close()  # as the kernel does for a program that was killed
    process.wait(timeout=120)
    assert gone(server)
    assert gone(worker)
    assert not folder.exists()


def test_stop_ends_the_whole_family(folder: Path):
    """Stopping returns when nothing of the worker runs; the folder is left to be read."""
    process = supervised(folder, HOLDS_THE_LOCK, "deaf")
    server = server_of(folder)
    assert is_held(folder)
    stop(process)
    assert gone(server)
    assert folder.exists()
    assert not is_held(folder)


def test_another_program_may_stop_a_worker(folder: Path):
    """By the supervisor's pid and the folder; where nothing runs, no process is touched."""
    process = supervised(folder, HOLDS_THE_LOCK)
    server = server_of(folder)
    stop_other(process.pid, folder)
    wait_until(lambda: gone(server))
    process.wait(timeout=120)
    stop_other(os.getpid(), folder)


def test_folders_of_killed_programs_are_deleted_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also if it starts no worker. What runs, and what is about to start, keeps its folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended, running, starting = make_folder(), make_folder(), make_folder()
    (ended / supervisor.LOCK).touch()
    (running / "server").touch()
    process = supervised(running, HOLDS_THE_LOCK)
    server_of(running)
    LocalExecutor().close()
    assert [folder.exists() for folder in (ended, running, starting)] == [False, True, True]
    stop(process)
