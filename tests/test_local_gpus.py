"""GPUs are shared out among the local executor's jobs, each to one at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmquant.errors import OptionError, UnsupportedError
from llmquant.executors import LocalExecutor
from llmquant.executors.local import executor as local
from llmquant.executors.local.options import LocalOptions
from llmquant.executors.shipping import record_path
from llmquant.machine.hardware import Gpu

FOUR = tuple(Gpu(index, f"GPU-{index}", "L40S", 46068, 3) for index in "0123")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start workers that only wait, on a machine with four GPUs; list the GPUs that each was given."""
    found: list[str] = []

    def start(
        folder: Path, record: Path, store: Path, *, search: list[str], environment: dict[str, str]
    ) -> subprocess.Popen:
        found.append(environment["CUDA_VISIBLE_DEVICES"])
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "nvidia_gpus", lambda: FOUR)
    monkeypatch.setattr(local, "default_device", lambda: "cuda")
    return found


def record(folder: Path) -> Path:
    path = record_path(folder, "study", 1)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return path


def test_a_job_may_have_several_gpus(given: list[str], tmp_path: Path):
    """They are given to no other job until this one has ended; the hardware says how many."""
    executor = LocalExecutor(gpus_per_job=2)
    job = record(tmp_path)
    assert (executor.slots, executor.hardware) == (2, "2 x L40S")
    first, _ = executor.submit(job, tmp_path), executor.submit(job, tmp_path)
    with pytest.raises(UnsupportedError, match="in use"):
        executor.submit(job, tmp_path)
    executor.cancel(first)
    executor.submit(job, tmp_path)
    executor.close()
    assert given == ["GPU-0,GPU-1", "GPU-2,GPU-3", "GPU-0,GPU-1"]


def test_jobs_at_a_time_may_be_limited(given: list[str]):
    """On GPUs the limit is lower than their number or does nothing; on the CPU it is what runs at a time."""
    assert [LocalExecutor(max_parallel=most).slots for most in (3, 9, None)] == [3, 4, 4]
    assert [LocalExecutor(device="cpu", max_parallel=most).slots for most in (3, None)] == [3, 1]


def test_more_gpus_than_there_are_is_refused(given: list[str]):
    """Before anything starts; and there are none for the CPU."""
    with pytest.raises(UnsupportedError, match="gpus_per_job=5, but only 4"):
        _ = LocalExecutor(gpus_per_job=5).hardware
    with pytest.raises(OptionError, match="cpu"):
        LocalOptions("cpu", gpus_per_job=2)


def test_several_gpus_on_a_machine_without_one_are_refused(monkeypatch: pytest.MonkeyPatch):
    """Who asks for GPUs does not get the processor."""
    monkeypatch.setattr(local, "default_device", lambda: "cpu")
    with pytest.raises(UnsupportedError, match="gpus_per_job=2, but no CUDA GPU"):
        _ = LocalExecutor(gpus_per_job=2).device
