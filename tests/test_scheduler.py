"""Whatever happens to a worker or to the program itself, only what was running is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import llmquant as lq
from llmquant.plugins.registry import registry

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def misbehaving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let this process and its workers import the misbehaving evaluator, and give them a cache of their own."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    import misbehaving

    before = list(registry().plugins)
    lq.register(misbehaving.SPEC)
    yield
    registry().plugins = before


def compare(tiny_model: Path, tmp_path: Path, *evaluators: str, **changes) -> lq.Comparison:
    options = {"executor": "local(device=cpu, threads=1)", "store": tmp_path / "store", "progress": False, **changes}
    return lq.compare(str(tiny_model), ["fp32_baseline"], evaluators, **options)


def by_evaluator(found: lq.Comparison) -> dict[str, lq.Run]:
    return {run.experiment.evaluator.label: run for run in found.runs.values()}


def starts(marker: Path) -> list[str]:
    return marker.read_text().split() if marker.exists() else []


def test_an_exception_costs_one_experiment(tiny_model: Path, tmp_path: Path):
    """The others complete in the same process; the failure keeps its log's tail, with tokens blanked."""
    returning = "misbehave(return_objects)"
    found = compare(tiny_model, tmp_path, "misbehave(raise)", "misbehave(oom)", returning, "misbehave")
    runs = by_evaluator(found)
    assert "JSON" in runs[returning].failure.message
    assert runs["misbehave"].status == "completed"
    failure = runs["misbehave(raise)"].failure
    assert failure.kind == "error"
    assert "this evaluator raises" in failure.message
    assert "Traceback" in failure.log_tail
    assert "hf_***" in failure.log_tail
    assert "hf_abc" not in failure.log_tail
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.name for path in files if b"hf_abc" in path.read_bytes()] == []
    assert runs["misbehave(oom)"].failure.kind == "out_of_memory"


def test_a_crash_costs_one_experiment(tiny_model: Path, tmp_path: Path):
    """A worker that dies is replaced, and what it had not started runs in the new one."""
    marker = tmp_path / "marker"
    evaluators = [f"misbehave({how}, marker={marker}, tag={i})" for i, how in enumerate(["not", "exit", "kill", "not"])]
    runs = by_evaluator(compare(tiny_model, tmp_path, *evaluators))
    assert [runs[label].status for label in evaluators] == ["completed", "failed", "failed", "completed"]
    assert runs[evaluators[1]].failure.kind == "lost"
    assert "exit code 3" in runs[evaluators[1]].failure.message
    assert "signal 9" in runs[evaluators[2]].failure.message
    assert starts(marker) == ["not0", "exit1", "kill2", "not3"]


def test_completed_runs_are_reused_and_failed_ones_tried_again(tiny_model: Path, tmp_path: Path):
    """The second call starts only what failed; a new evaluator repeats no other; `fresh` repeats beside."""
    marker = tmp_path / "marker"
    good, bad = f"misbehave(not, marker={marker})", f"misbehave(raise, marker={marker})"
    compare(tiny_model, tmp_path, good, bad)
    again = compare(tiny_model, tmp_path, good, bad, f"misbehave(not, marker={marker}, tag=new)")
    assert sorted(starts(marker)) == ["not", "notnew", "raise", "raise"]
    assert by_evaluator(again)[bad].attempt == 2
    fresh = compare(tiny_model, tmp_path, good, fresh=True)
    assert by_evaluator(fresh)[good].attempt == 2
    assert lq.Store(tmp_path / "store").attempts(by_evaluator(fresh)[good].run_id) == [1, 2]


def test_a_model_that_does_not_load_fails_its_experiments_with_the_reason(tiny_model: Path, tmp_path: Path):
    """A shape that does not fit the configuration is told; nothing is replaced by random weights."""
    import json
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    found = compare(broken, tmp_path, "misbehave")
    (run,) = found.runs.values()
    assert run.status == "failed"
    assert "layers.2" in run.failure.message


# A shell that runs the tests in the background has them ignore Ctrl-C; a program that a person starts heeds it.
SCRIPT = """
import signal, llmquant as lq, misbehaving
signal.signal(signal.SIGINT, signal.default_int_handler)
lq.register(misbehaving.SPEC)
lq.compare({model!r}, ["fp32_baseline"], {evaluators!r}, executor="local(device=cpu, threads=1)", store={store!r})
"""


def start_script(tiny_model: Path, tmp_path: Path, evaluators: list[str]) -> subprocess.Popen:
    code = SCRIPT.format(model=str(tiny_model), evaluators=evaluators, store=str(tmp_path / "store"))
    return subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stderr=subprocess.DEVNULL)


def wait_until(condition, timeout_s: float = 120) -> None:
    end = time.time() + timeout_s
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_after_the_program_itself_dies_only_the_unfinished_is_repeated(tiny_model: Path, tmp_path: Path, number: int):
    """Its worker ends with it, the store opens, and the same study goes on from what was done."""
    marker = tmp_path / "marker"
    evaluators = [f"misbehave(not, marker={marker})", f"misbehave(sleep, marker={marker})"]
    program = start_script(tiny_model, tmp_path, evaluators)
    wait_until(lambda: starts(marker) == ["not", "sleep"])
    workers = psutil.Process(program.pid).children()
    assert len(workers) == 1
    os.kill(program.pid, number)
    program.wait(timeout=30)
    wait_until(lambda: not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE)
    found = compare(tiny_model, tmp_path, *evaluators, timeout_s=1)
    runs = by_evaluator(found)
    assert runs[evaluators[0]].status == "completed"
    assert runs[evaluators[1]].failure.kind == "timeout"
    assert starts(marker)[:2] == ["not", "sleep"]
    assert "not" not in starts(marker)[2:]


def test_two_programs_may_share_a_store(tiny_model: Path, tmp_path: Path):
    """Both finish, and every run is there once."""
    programs = [start_script(tiny_model, tmp_path, ["misbehave", "misbehave(not, tag=2)"]) for _ in range(2)]
    assert [program.wait(timeout=180) for program in programs] == [0, 0]
    runs = lq.Store(tmp_path / "store").runs()
    assert [run.status for run in runs.values()] == ["completed", "completed"]
    assert not list((tmp_path / "store" / "runs").glob(".partial*"))
