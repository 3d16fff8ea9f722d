"""GPUs are found without torch, as the driver tells them; a busy one is said, and labels say what is used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from llmquant.errors import UnsupportedError
from llmquant.executors import LocalExecutor
from llmquant.machine import hardware


class NvmlError(Exception):
    pass


@dataclass(frozen=True)
class Card:
    """A GPU, or an instance of one."""

    uuid: str
    name: str
    used_mib: int = 3
    pids: tuple[int, ...] = ()
    instances: tuple[Card, ...] = ()


class Driver:
    """The functions of NVML that are used, over made-up cards."""

    NVMLError = NvmlError

    def __init__(self, *cards: Card) -> None:
        self.cards = cards

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if "A100" not in card.name:
            raise NvmlError("not supported")
        return [int(bool(card.instances))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, number: int) -> Card:  # noqa: N802
        if number >= len(card.instances):
            raise NvmlError("not found")
        return card.instances[number]

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=46068 * hardware.MIB, used=card.used_mib * hardware.MIB)

    def nvmlDeviceGetName(self, card: Card) -> str:  # noqa: N802
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in card.pids]

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        return "/usr/bin/python3"


L40S = Card("GPU-aaaa-1111", "NVIDIA L40S")
BUSY = Card("GPU-aabb-2222", "NVIDIA L40S", 20480, (4242,))
DIVIDED = Card(
    "GPU-cccc-3333",
    "NVIDIA A100-SXM4-80GB",
    instances=(
        Card("MIG-dddd", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
        Card("MIG-eeee", "NVIDIA A100-SXM4-80GB MIG 3g.40gb"),
    ),
)


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs of one kind, and one of another kind that is divided."""
    monkeypatch.setattr(hardware, "pynvml", Driver(L40S, BUSY, DIVIDED))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def cuda_executor() -> LocalExecutor:
    executor = LocalExecutor()
    vars(executor)["device"] = "cuda"  # as it would be with a CUDA build of torch
    return executor


def test_gpus_of_one_kind_are_the_slots():
    """Names, memory and processes are the driver's; the label names what is used, a notice what is not."""
    first, second, *instances = hardware.nvidia_gpus()
    assert (first.name, first.total_mib, first.processes) == ("L40S", 46068, ())
    assert second.processes == ("4242 /usr/bin/python3",)
    assert [gpu.uuid for gpu in instances] == ["MIG-dddd", "MIG-eeee"]
    executor = cuda_executor()
    assert (executor.slots, executor.hardware) == (2, "L40S")
    assert [notice for notice in executor.notices if "MIG 3g.40gb) is not used" in notice]


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["L40S"]),
        ("GPU-aaaa-1111", ["L40S"]),
        ("GPU-aab", ["L40S"]),
        ("MIG-eeee", ["A100-SXM4-80GB MIG 3g.40gb"]),
        ("2", ["A100-SXM4-80GB MIG 1g.10gb"]),
        ("1, GPU-aaaa", ["L40S", "L40S"]),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_devices_are_respected(monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]):
    """`CUDA_VISIBLE_DEVICES` limits what is used, by number, by id, by a part of an id, by an instance."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in hardware.nvidia_gpus()] == names


@pytest.mark.parametrize("visible", ["3", "GPU-ffff", "GPU-aa", "L40S"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, visible: str):
    """A name that means no GPU, or several, does not silently mean the processor."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UnsupportedError, match="CUDA_VISIBLE_DEVICES") as caught:
        hardware.nvidia_gpus()
    assert "GPU-aaaa-1111" in caught.value.hint


def test_the_label_says_which_of_two_kinds_is_used(monkeypatch: pytest.MonkeyPatch):
    """The first that is visible decides."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-eeee,GPU-aaaa")
    executor = cuda_executor()
    assert (executor.slots, executor.hardware) == (1, "A100-SXM4-80GB MIG 3g.40gb")


def test_a_busy_gpu_is_said():
    """The notice names the GPU and who is on it; a free one is not mentioned."""
    (notice,) = [notice for notice in cuda_executor().notices if "busy" in notice]
    assert "GPU 1 (L40S) is busy" in notice
    assert "4242 /usr/bin/python3" in notice


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch):
    """That is no error, whatever is visible."""
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def fail() -> None:
        raise hardware.pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(hardware.pynvml, "nvmlInit", fail)
    assert hardware.nvidia_gpus() == ()


def test_cpu_labels_say_what_is_used(monkeypatch: pytest.MonkeyPatch):
    """The threads that were asked for, and the cores where these are fewer."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = LocalExecutor(device="cpu")
    assert (one.threads, one.hardware) == (1, f"cpu {hardware.cpu_name()}, 1 threads")
    many = hardware.cpu_cores() + 1
    monkeypatch.setenv("OMP_NUM_THREADS", f"{many},2")
    assert LocalExecutor(device="cpu").hardware.startswith(f"cpu {hardware.cpu_name()}, {many} threads on ")
    assert LocalExecutor(device="cpu", threads=1).hardware == one.hardware


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_a_core_computes_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    """As `taskset -c 0` binds it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert (hardware.cpu_cores(), hardware.cpu_threads()) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)


def test_gpus_that_fit_are_named_smallest_first():
    """A tenth of the memory is kept free."""
    assert hardware.fitting_gpus(20 * hardware.GIB)[0] == "L4"
    assert hardware.fitting_gpus(22 * hardware.GIB)[0] == "A100"
    assert hardware.fitting_gpus(1000 * hardware.GIB) == []
