"""GPUs are found without torch, as `nvidia-smi` tells them; a busy one is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmquant import hardware
from llmquant.executors import LocalExecutor

NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*)
    echo "0, GPU-aaaa, NVIDIA L40S, 46068, 3"
    echo "1, GPU-bbbb, NVIDIA A100-SXM4-80GB, 81920, 20480" ;;
  --query-compute-apps=*) echo "GPU-bbbb, 4242, /usr/bin/python3" ;;
esac
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an `nvidia-smi` that knows two GPUs first on the path."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def cuda_executor() -> LocalExecutor:
    executor = LocalExecutor()
    vars(executor)["device"] = "cuda"  # as it would be with a CUDA build of torch
    return executor


def test_every_gpu_is_a_slot():
    """Names, memory and processes are read off `nvidia-smi`."""
    first, second = hardware.nvidia_gpus()
    assert (first.name, first.total_mib, first.processes) == ("L40S", 46068, ())
    assert second.processes == ("4242 /usr/bin/python3",)
    assert cuda_executor().slots == 2


@pytest.mark.parametrize(("visible", "names"), [("1", ["A100-SXM4-80GB"]), ("GPU-aaaa", ["L40S"]), ("", [])])
def test_visible_devices_are_respected(monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]):
    """`CUDA_VISIBLE_DEVICES` limits what is used, by index or by id."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in hardware.nvidia_gpus()] == names


def test_a_busy_gpu_is_said():
    """The notice names the GPU and who is on it; a free one is not mentioned."""
    (notice,) = cuda_executor().notices
    assert "GPU 1 (A100-SXM4-80GB) is busy" in notice
    assert "4242 /usr/bin/python3" in notice


def test_gpus_that_fit_are_named_smallest_first():
    """A tenth of the memory is kept free."""
    assert hardware.fitting_gpus(20 * hardware.GIB)[0] == "L4"
    assert hardware.fitting_gpus(22 * hardware.GIB)[0] == "A100"
    assert hardware.fitting_gpus(1000 * hardware.GIB) == []
