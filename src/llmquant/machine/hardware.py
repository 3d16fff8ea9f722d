"""This machine's compute devices, found without importing torch, and a dated table of GPUs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from llmquant.errors import UnsupportedError
from llmquant.study.job import Device

# Values of CUDA_VISIBLE_DEVICES for no GPU.
_NO_GPU = ("", "-1", "none", "NoDevFiles")
MIB = 2**20
GIB = 2**30

# Memory as stated by the vendors, in GiB; read in November 2026.
GPU_TABLE_DATE = "2026-11"
GPU_MEMORY_GIB = {
    "T4": 16,
    "L4": 24,
    "A10G": 24,
    "RTX 4090": 24,
    "A100": 40,
    "L40S": 48,
    "A100-80GB": 80,
    "H100": 80,
    "H200": 141,
    "B200": 192,
}


@dataclass(frozen=True)
class Gpu:
    """A visible NVIDIA GPU.

    Attributes:
        index: number in `nvidia-smi`; the instances of a divided GPU share it.
        uuid: id for ``CUDA_VISIBLE_DEVICES``, independent of the order of the numbers.
        processes: other processes on the GPU, as ``pid name``.
    """

    index: str
    uuid: str
    name: str
    total_mib: int
    used_mib: int
    processes: tuple[str, ...] = ()


@functools.cache
def default_device() -> Device:
    """Return the best device that the installed torch can use."""
    if built_for_cuda("torch") and nvidia_gpus():
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64" and built_for_cuda("torch") is not None:
        return "mps"
    return "cpu"


@functools.cache
def built_for_cuda(package: str) -> str | None:
    """Return the CUDA version that torch or torchvision was built for, such as ``13.0``.

    Read from the package's files, without importing it; empty for a CPU build, ``None`` if the package is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    if stated := re.search(r"^cuda\b[^=\n]*=\s*['\"](.+?)['\"]", text, re.MULTILINE):
        return stated[1]
    tag = re.search(r"^__version__\b[^\n]*\+cu(\d+)(\d)\b", text, re.MULTILINE)
    return f"{tag[1]}.{tag[2]}" if tag else ""


def driver_cuda_version() -> str | None:
    """Return the newest CUDA version that the NVIDIA driver runs; ``None`` without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        pynvml.nvmlShutdown()
    return f"{version // 1000}.{version % 1000 // 10}"


def nvidia_gpus() -> tuple[Gpu, ...]:
    """List the driver's GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in the order of that variable.

    A divided GPU (MIG) is listed as its instances.

    Raises:
        UnsupportedError: if ``CUDA_VISIBLE_DEVICES`` names a missing GPU: CUDA would silently use no GPU.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # the driver is missing or does not answer
        return ()
    try:
        gpus = [_instances(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not gpus:
        return tuple(gpu for instances in gpus for gpu in instances)
    return tuple(_named(item.strip(), gpus) for item in visible.split(",") if item.strip() not in _NO_GPU)


def cpu_threads() -> int:
    """Return the number of compute threads: ``OMP_NUM_THREADS``, else the physical cores of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else cpu_cores()


def cpu_cores() -> int:
    """Count the physical cores that this process may use, for example under ``taskset``."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or 1
    topology = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list") for cpu in os.sched_getaffinity(0))
    try:
        return len({path.read_text() for path in topology})
    except OSError:
        return min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)


def cpu_label(device: Device, threads: int) -> str:
    """Name the CPU and the threads, on which timings depend."""
    cores = cpu_cores()
    shared = "" if threads <= cores else f" on {cores} {'core' if cores == 1 else 'cores'}"
    return f"{device} {cpu_name()}, {threads} threads{shared}"


def hardware_text(label: str) -> str:
    """Write the label of an executor's hardware for people: run ids contain it, also where it says "1 threads"."""
    return label.replace(", 1 threads", ", 1 thread")


def cpu_name() -> str:
    """Return the CPU's name from the operating system."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction sets, such as ``avx512_bf16``; empty on systems other than Linux."""
    return frozenset(_cpuinfo("flags").split())


@functools.cache
def _cpuinfo(key: str) -> str:
    """Return one line of ``/proc/cpuinfo``; empty where there is none."""
    with contextlib.suppress(OSError):
        match = re.search(rf"^{key}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return match[1].strip() if match else ""
    return ""


def fitting_gpus(peak_bytes: int) -> list[str]:
    """List the known GPUs with enough memory for `peak_bytes` and 10 % kept free, the smallest first."""
    return [name for name, gib in GPU_MEMORY_GIB.items() if peak_bytes <= 0.9 * gib * GIB]


def _instances(index: int) -> list[Gpu]:
    """Return a GPU, or the instances of a divided GPU."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # a GPU that cannot be divided
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(pynvml.NVMLError):  # fewer instances than the maximum
                    found.append(_gpu(index, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
    return found or [_gpu(index, handle)]


def _gpu(index: int, handle: Any) -> Gpu:  # Any: a handle of NVML's
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    processes: list[str] = []
    with contextlib.suppress(pynvml.NVMLError):  # not every user may list processes
        processes = [f"{each.pid} {_process(each.pid)}" for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    name = pynvml.nvmlDeviceGetName(handle).removeprefix("NVIDIA ")
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    return Gpu(str(index), uuid, name, memory.total // MIB, memory.used // MIB, tuple(processes))


def _process(pid: int) -> str:
    with contextlib.suppress(pynvml.NVMLError):
        return str(pynvml.nvmlSystemGetProcessName(pid))
    return "unknown"


def _named(item: str, gpus: Sequence[Sequence[Gpu]]) -> Gpu:
    """Find a GPU like CUDA: by its number, its id, or a unique prefix of its id."""
    every = [gpu for instances in gpus for gpu in instances]
    if item.isdecimal():
        found = [gpus[int(item)][0]] if int(item) < len(gpus) else []
    else:
        found = [gpu for gpu in every if gpu.uuid.startswith(item)]
    if len(found) != 1:
        raise UnsupportedError(
            f"CUDA_VISIBLE_DEVICES contains {item!r}, which matches "
            f"{'no GPU' if not found else 'more than one GPU'} of this machine",
            hint=f"This machine's GPUs are {', '.join(f'{gpu.index} ({gpu.name}, {gpu.uuid})' for gpu in every)}.",
        )
    return found[0]
