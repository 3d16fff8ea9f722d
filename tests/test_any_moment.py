"""A process that dies at any moment leaves whole runs and whole made things, and nothing in the way of the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmquant.executors.shipping import bring_home, record_path
from llmquant.storage.cache import Cache
from llmquant.storage.journal import journal_path, log_path
from llmquant.storage.store import Store
from test_store import SAMPLES, make_run

HERE = Path(__file__).parent
# Forks a process that dies at its first operation on files, one that dies at its second, until one comes to its end.
# Or its disk is full, or read-only, from that moment on: the process must then end in an error that says so.
# Or 100 processes are killed at random times, also in the middle of a write.
DIE = """
import errno, os, random, signal, sys, time
import test_any_moment
from llmquant.errors import LlmquantError
ON_FILES = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime"}
MAKES = {"open", "os.mkdir"}  # what a full disk refuses
root, work, how = sys.argv[1], getattr(test_any_moment, sys.argv[2]), sys.argv[3]
work(f"{root}/whole")  # imports what is needed once, not in each fork
began = time.monotonic()
work(f"{root}/again")
took = time.monotonic() - began
for moment in range(1, 101 if how == "killed" else 1000):
    child = os.fork()
    if not child:
        left = [moment]
        def count(event, arguments):
            left[0] -= event in ON_FILES
            if left[0] > 0 or event not in ON_FILES or how == "killed":
                return
            if how == "dies":
                os._exit(9)
            reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not reads and (how == "EROFS" or event in MAKES):
                number = getattr(errno, how)
                raise OSError(number, os.strerror(number), arguments[0])
        sys.addaudithook(count)
        if how == "killed":
            signal.setitimer(signal.ITIMER_REAL, random.Random(moment).uniform(0, took))  # SIGALRM ends a process
        try:
            work(f"{root}/{moment}")
        except (LlmquantError, OSError) as error:
            os._exit(9 if os.strerror(getattr(errno, how)) in str(error) else 1)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(7 if left[0] > 0 else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 1:
        sys.exit(f"moment {moment} ended in another error")
    if code == 7 and how != "killed":
        break
"""

# ``nox -s fuzz`` sets the variable.
ALL = ("dies", "killed", "ENOSPC", "EROFS") if os.environ.get("LLMQUANT_FUZZ_TRIES") else ("dies",)
HOW = pytest.mark.parametrize("how", ALL)


def write(root: str) -> None:
    """Store a study, a job and a run, as a program and its worker do."""
    store, run = Store(root), make_run()
    store.write_study("s", {"schema_version": 1, "study_id": "s"})
    store.new_job("s")
    partial = store.begin()
    (partial / "files" / "kept").write_text("kept")
    store.commit(run, partial, {"t": SAMPLES})


def make(root: str) -> Path:
    """Make a thing of two files in the cache."""

    def files(folder: Path) -> None:
        (folder / "one").write_text("1")
        (folder / "two").write_text("2")

    return Cache(Path(root)).get("kind", {"key": 1}, files)


def bring(root: str) -> None:
    """Bring a run, a journal and a log home from a worker's own store."""
    work, run = Store(Path(root) / "worker"), make_run()
    if not work.attempts(run.run_id):
        write(str(work.root))
    record = record_path(work.root, "s", 1)
    journal_path(record).write_text("finished\n")
    log_path(record).write_text("one line\nand another")
    bring_home(work.root, Path(root) / "home", "s", 1, ended=True)


def _deaths(folder: Path, what: str, how: str) -> Iterator[str]:
    """Yield a folder per moment at which a process that worked in it was disturbed, and that of the undisturbed one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    subprocess.run([sys.executable, "-c", DIE, str(folder), what, how], check=True, env=environment, timeout=300)
    moments = [str(path) for path in folder.iterdir()]
    assert len(moments) > 10
    print(f"{what} ({how}): {len(moments)} moments")
    yield from moments


@HOW
def test_a_run_is_stored_whole_or_not_at_all(tmp_path: Path, how: str):
    """Whenever its writer dies or its disk is full: what is there can be read; the next one completes and sweeps."""
    run = make_run()
    whole = 0
    for root in _deaths(tmp_path, "write", how):
        store = Store(root)
        found = store.runs()
        assert found in ({}, {run.run_id: run})
        for stored in found.values():
            assert store.samples(stored) == {"t": SAMPLES}
            assert (store.files(stored) / "kept").read_text() == "kept"
        assert store.studies() in ([], ["s"])
        whole += bool(found)
        write(root)
        assert Store(root).runs() == {run.run_id: run}
        assert [path.name for path in (Path(root) / "runs").iterdir()] == [run.run_id]
    assert whole > 1, "none of those that died had stored its run"


@HOW
def test_what_a_worker_did_comes_home_whole(tmp_path: Path, how: str):
    """Whenever the copying program dies or its disk is full: no run is incomplete, no line is there twice."""
    run = make_run()
    for root in _deaths(tmp_path, "bring", how):
        home = Store(Path(root) / "home")
        assert home.runs() in ({}, {run.run_id: run})
        bring(root)
        assert home.samples(home.runs()[run.run_id]) == {"t": SAMPLES}
        home.sweep()
        assert [path.name for path in (home.root / "runs").iterdir()] == [run.run_id]
        record = record_path(home.root, "s", 1)
        assert journal_path(record).read_text() == "finished\n"
        assert log_path(record).read_text() == "one line\nand another"


@HOW
def test_a_made_thing_is_made_whole_or_not_at_all(tmp_path: Path, how: str):
    """Whenever its maker dies or its disk is full, the next one finds it whole or makes it."""
    for root in _deaths(tmp_path, "make", how):
        assert [(make(root) / name).read_text() for name in ("one", "two")] == ["1", "2"]
        assert len(Cache(Path(root)).entries()) == 1
        assert not list(Path(root).glob("*/.*"))
