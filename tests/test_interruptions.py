"""Whatever happens to the program itself, only what was running is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import llmquant as lq
from misbehaving_studies import HERE, by_evaluator, compare, misbehaving, starts, wait_until

__all__ = ["misbehaving"]  # a fixture


# A shell that runs the tests in the background has them ignore Ctrl-C; a program that a person starts heeds it.
SCRIPT = """
import signal, llmquant as lq, misbehaving
signal.signal(signal.SIGINT, signal.default_int_handler)
lq.register(misbehaving.SPEC)
lq.compare({model!r}, ["fp32_baseline"], {evaluators!r}, executor="local(device=cpu, threads=1)", store={store!r})
"""


COMMAND = """
import signal, sys, llmquant as lq, misbehaving
from llmquant.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)
lq.register(misbehaving.SPEC)
sys.argv = ["llmquant", "compare", {model!r}, "-q", "fp32_baseline", "--on", "local(device=cpu, threads=1)"]
sys.argv += ["--store", {store!r}, *(word for call in {evaluators!r} for word in ("-e", call))]
main()
"""


def start_script(
    tiny_model: Path, tmp_path: Path, evaluators: list[str], script: str = SCRIPT, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen:
    code = script.format(model=str(tiny_model), evaluators=evaluators, store=str(tmp_path / "store"))
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stderr=stderr, env=environment)


def interruption(tmp_path: Path) -> str:
    """Return what Ctrl-C prints last: how many experiments are finished, and where they are stored."""
    return f"interrupted: 1 of 2 experiments are stored in {tmp_path / 'store'}; the same command continues"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_after_the_program_itself_dies_only_the_unfinished_is_repeated(tiny_model: Path, tmp_path: Path, number: int):
    """Its worker ends with it and leaves no temporary file; the same study continues from what was done.

    The last line that a notebook shows after Ctrl-C says so.
    """
    marker = tmp_path / "marker"
    evaluators = [f"misbehave(not, marker={marker})", f"misbehave(sleep, marker={marker})"]
    program = start_script(tiny_model, tmp_path, evaluators, stderr=subprocess.PIPE)
    wait_until(lambda: starts(marker) == ["not", "sleep"])
    workers = psutil.Process(program.pid).children()
    assert len(workers) == 1
    os.kill(program.pid, number)
    _, stderr = program.communicate(timeout=300)
    if number == signal.SIGINT:
        assert stderr.decode().splitlines()[-1] == f"KeyboardInterrupt: {interruption(tmp_path)}"
    wait_until(lambda: not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not list((tmp_path / "tmp").iterdir()))
    found = compare(tiny_model, tmp_path, *evaluators, timeout_s=1)
    runs = by_evaluator(found)
    assert runs[evaluators[0]].status == "completed"
    assert runs[evaluators[1]].failure.kind == "timeout"
    assert starts(marker)[:2] == ["not", "sleep"]
    assert "not" not in starts(marker)[2:]


def test_two_programs_may_share_a_store(tiny_model: Path, tmp_path: Path):
    """Both finish, and every run is there once."""
    programs = [start_script(tiny_model, tmp_path, ["misbehave", "misbehave(not, tag=2)"]) for _ in range(2)]
    assert [program.wait(timeout=300) for program in programs] == [0, 0]
    runs = lq.Store(tmp_path / "store").runs()
    assert [run.status for run in runs.values()] == ["completed", "completed"]
    assert not list((tmp_path / "store" / "runs").glob(".partial*"))


PRESS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

def press(*rest, **named):
    os.kill(os.getpid(), signal.SIGINT)

{moment}
sys.argv = ["llmquant", "compare", {model!r}, "-q", "fp32_baseline", "-e", "memory", "--store", {store!r}]
from llmquant.__main__ import main
main()
"""
IMPORTING = """
class Finder:
    def find_spec(self, name, *rest):
        return press() if name == "llmquant.cli.app" else None
sys.meta_path.insert(0, Finder())
"""
ASKING = """
import builtins, io
from llmquant.executors import LocalExecutor
from llmquant.plugins.executor import Offer
LocalExecutor.check = lambda self, jobs, running=(): Offer("at most $1.00", 1.0, False)
builtins.input = press
sys.stdin = io.StringIO()
sys.stdin.isatty = lambda: True
"""
COMPARING = """
import llmquant.api
llmquant.api.Scheduler.run = lambda *rest: {}
llmquant.api.Comparison.of = press
"""
MOMENTS = {
    "importing": IMPORTING,
    "reading the options": "import typer.core; typer.core.TyperGroup.make_context = press",
    "planning": "import llmquant.planning.resolve; llmquant.planning.resolve.inspect_subject = press",
    "asking": ASKING,
    "comparing": COMPARING,
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_ctrl_c_at_any_other_moment_prints_one_line(tmp_path: Path, tiny_model: Path, moment: str):
    """No traceback and no silence: the last line says that the command was interrupted, and the exit code is 130."""
    code = PRESS.format(moment=moment, model=str(tiny_model), store=str(tmp_path / "store"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("\ninterrupted\n")
    assert "Traceback" not in done.stderr
    assert done.returncode == 130


def test_ctrl_c_says_what_is_stored_and_where(tiny_model: Path, tmp_path: Path):
    """The last line that a terminal shows counts the finished experiments and names the store."""
    marker = tmp_path / "marker"
    evaluators = [f"misbehave(not, marker={marker})", f"misbehave(sleep, marker={marker})"]
    program = start_script(tiny_model, tmp_path, evaluators, COMMAND, subprocess.PIPE)
    wait_until(lambda: starts(marker) == ["not", "sleep"])
    program.send_signal(signal.SIGINT)
    _, stderr = program.communicate(timeout=300)
    assert stderr.decode().splitlines()[-1] == interruption(tmp_path)
    assert program.returncode == 130
