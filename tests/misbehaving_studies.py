"""Studies of the misbehaving evaluator, for tests of what happens to its worker and to the program itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llmquant as lq
from llmquant.executors import LocalExecutor
from llmquant.plugins.executor import JobState
from llmquant.plugins.registry import registry
from llmquant.storage.store import Store

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def misbehaving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let this process and its workers import the misbehaving evaluator, and give them a cache of their own."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    import meddling
    import misbehaving

    before = list(registry().plugins)
    for spec in (misbehaving.SPEC, misbehaving.BREAK, meddling.MEDDLE):
        lq.register(spec)
    yield
    registry().plugins = before


def compare(tiny_model: Path, tmp_path: Path, *evaluators: str, **changes) -> lq.Comparison:
    options = {"executor": "local(device=cpu, threads=1)", "store": tmp_path / "store", "progress": False, **changes}
    return lq.compare(str(tiny_model), ["fp32_baseline"], evaluators, **options)


class Here(LocalExecutor):
    """Does jobs in the process of the test: that takes a second where a worker takes ten."""

    def __init__(self) -> None:
        super().__init__(device="cpu")

    def submit(self, job: Path, store: Path) -> str:
        from llmquant.running.worker import work

        while work(job, Store(store)):  # a worker would become a new process
            pass
        return "here"

    def collect(self, job_id: str, store: Path) -> JobState:
        return "ended"

    def cancel(self, job_id: str) -> None:
        pass


def by_evaluator(found: lq.Comparison) -> dict[str, lq.Run]:
    return {run.experiment.evaluator.label: run for run in found.runs.values()}


def starts(marker: Path) -> list[str]:
    return marker.read_text().split() if marker.exists() else []


def wait_until(condition: Callable[[], object], timeout_s: float = 300) -> None:
    end = time.time() + timeout_s
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.1)
