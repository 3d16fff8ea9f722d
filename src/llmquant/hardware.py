"""What this machine can compute on, found without importing torch; and a dated table of GPUs."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmquant.protocols import Device

MIB = 2**20
GIB = 2**30

# Memory the vendors state, in GiB; read in November 2026.
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
    """An NVIDIA GPU that may be used.

    Attributes:
        index: as ``CUDA_VISIBLE_DEVICES`` names it.
        processes: other processes on it, as ``pid name``.
    """

    index: str
    name: str
    total_mib: int
    used_mib: int
    processes: tuple[str, ...] = ()


@functools.cache
def default_device() -> Device:
    """Return the best device that the installed torch can use."""
    if torch_build() == "cuda" and nvidia_gpus():
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64" and torch_build() is not None:
        return "mps"
    return "cpu"


@functools.cache
def torch_build() -> str | None:
    """Return ``cuda`` or ``cpu``, read from the installed torch's files; ``None`` without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    match = re.search(r"^cuda\b[^=\n]*=\s*(.+)$", version.read_text(encoding="utf-8"), re.MULTILINE)
    return "cpu" if match is None or match[1].strip() == "None" else "cuda"


def nvidia_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that `nvidia-smi` knows and ``CUDA_VISIBLE_DEVICES`` leaves visible."""
    rows = _nvidia_smi("--query-gpu=index,uuid,name,memory.total,memory.used")
    applications = _nvidia_smi("--query-compute-apps=gpu_uuid,pid,process_name") if rows else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [item.strip() for item in visible.split(",") if item.strip()]
    gpus = {}
    for index, uuid, name, total, used in rows:
        processes = tuple(f"{pid} {process}" for gpu, pid, process in applications if gpu == uuid)
        gpu = Gpu(index, name.removeprefix("NVIDIA "), int(total), int(used), processes)
        gpus[index] = gpus[uuid] = gpu
    if wanted is None:
        return tuple(dict.fromkeys(gpus.values()))
    return tuple(gpus[item] for item in wanted if item in gpus)


@functools.cache
def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def fitting_gpus(peak_bytes: int) -> list[str]:
    """Name the GPUs of the table whose memory holds `peak_bytes`, a tenth kept free, the smallest first."""
    return [name for name, gib in GPU_MEMORY_GIB.items() if peak_bytes <= 0.9 * gib * GIB]


def _nvidia_smi(query: str) -> list[list[str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
