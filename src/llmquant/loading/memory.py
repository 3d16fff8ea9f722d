"""What a model's weights hold in memory, and the most that a piece of work takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from llmquant.errors import describe

# A layer that holds one of these holds codes there; everything else of it but the bias belongs to the quantization:
# scales, zero points and indices, under names and in copies that differ by kernel (GPTQ, AWQ, HQQ, compressed-tensors).
_CODE_NAMES = frozenset({"qweight", "qweight_uint8", "int8_weight_nk", "weight_packed"})
# Beside weights that are quantized and keep their name.
_STATE_NAMES = frozenset({"weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx"})
# What bitsandbytes hangs on parameters (the first) and on 8-bit layers (the second), by class name: the package
# need not be installed.
_STATE_CLASSES = frozenset({"QuantState", "MatmulLtState"})
# What torch's allocators say where they raise a plain RuntimeError: of the CPU (two versions), of MPS, and cuBLAS.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# A mark that was reset and the resident memory read after it differ by what happened in between.
_MARK_SLACK = 2**20


@dataclass(frozen=True)
class WeightBytes:
    """What a module keeps between two forward passes, in bytes; every storage once.

    Attributes:
        parameters: weights, quantized or not: of quantized ones the codes alone.
        quantization_state: scales, zero points, offsets and code tables.
        buffers: everything else that the modules hold, such as rotary frequencies.
    """

    parameters: int
    quantization_state: int
    buffers: int

    @property
    def total(self) -> int:
        """Add the three up."""
        return self.parameters + self.quantization_state + self.buffers


def weight_bytes(module: torch.nn.Module) -> WeightBytes:
    """Count the bytes that `module` holds.

    Tied weights count once. Unlike the sum of the parameters this has the quantization state of bitsandbytes, which
    hangs on the parameter (4 bit) or on the layer (8 bit, after the first forward pass), and the inner tensors of
    tensor subclasses (torchao, quanto). It is a reading of this moment: on a CPU with AVX512-BF16 the first
    forward pass of bitsandbytes' 4-bit layers repacks the weights and expands doubly quantized scales to bfloat16.

    Returns:
        Bytes on all devices together; tensors on the meta device hold nothing.
    """
    storages = _Storages()
    for tensor, kind in _held(module):
        storages.add(tensor, kind)
    return WeightBytes(**storages.sums)


def touch_weights(module: torch.nn.Module) -> None:
    """Read a byte of every page of the weights on the CPU.

    A checkpoint in the dtype it was saved in is memory-mapped, and takes no memory before its first use. What loading
    takes is comparable between dtypes only when it ends with this, inside `peak_memory`.
    """
    for tensor, _ in _held(module):
        for leaf in _leaves(tensor):
            if leaf.device.type == "cpu":
                torch.empty(0, dtype=torch.uint8).set_(leaf.untyped_storage())[::4096].sum()


def tensor_bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Count the bytes that `tensors` hold together, every storage once."""
    storages = _Storages()
    for tensor in tensors:
        storages.add(tensor, "parameters")
    return sum(storages.sums.values())


def stored_elements(module: torch.nn.Module) -> dict[str, int]:
    """Count the stored elements of a module's weights by storage dtype, tied ones once.

    Of packed weights these are the packed words, and the quantization state counts; other buffers do not.
    """
    kinds = elements_by_kind(module)
    return dict(kinds["parameters"] + kinds["quantization_state"])


def elements_by_kind(module: torch.nn.Module) -> dict[str, Counter[str]]:
    """Count the stored elements of everything that a module holds, by the fields of `WeightBytes` and dtype."""
    found = {name: Counter[str]() for name in ("parameters", "quantization_state", "buffers")}
    seen = set[tuple[torch.device, int]]()
    for tensor, where in _held(module):
        leaves = sorted(_leaves(tensor), key=lambda leaf: leaf.numel() * leaf.element_size(), reverse=True)
        for position, leaf in enumerate(leaves):
            key = (leaf.device, leaf.data_ptr())
            if leaf.device.type != "meta" and leaf.numel() and key not in seen:
                seen.add(key)
                kind = "quantization_state" if position else where
                found[kind][str(leaf.dtype).removeprefix("torch.")] += leaf.numel()
    return found


def own_tensors(layer: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that one layer holds itself: parameters, buffers and the quantization state at them."""
    states = [value for value in vars(layer).values() if type(value).__name__ in _STATE_CLASSES]
    for parameter in layer.parameters(recurse=False):
        yield from _leaves(parameter)
        states.append(parameter)
    for buffer in layer.buffers(recurse=False):
        yield from _leaves(buffer)
    for state in states:
        for tensor in _attached(state):
            yield from _leaves(tensor)


def _held(module: torch.nn.Module) -> Iterator[tuple[torch.Tensor, str]]:
    """Yield what a module holds, with the field of `WeightBytes` where it belongs; a tensor may come twice."""
    for child in module.modules():
        packed = _is_packed(child)
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            yield parameter, _kind(name, "parameters", packed=packed)
            for tensor in _attached(parameter):
                yield tensor, "quantization_state"
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
            yield buffer, _kind(name, "buffers", packed=packed)
    # Attributes come last, so that a second name for a parameter or a buffer is not counted as something else.
    for child in module.modules():
        kind = "quantization_state" if _is_packed(child) else "buffers"
        for value in vars(child).values():
            if isinstance(value, torch.Tensor):
                yield value, kind
            elif type(value).__name__ in _STATE_CLASSES:
                for tensor in _attached(value):
                    yield tensor, "quantization_state"


def _is_packed(module: torch.nn.Module) -> bool:
    names = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    return not _CODE_NAMES.isdisjoint(names)


def _kind(name: str, otherwise: str, *, packed: bool) -> str:
    if packed:
        return "parameters" if name in _CODE_NAMES or name == "bias" else "quantization_state"
    return "quantization_state" if name in _STATE_NAMES else otherwise


class _Storages:
    """Sums over storages, each counted where it is met first."""

    def __init__(self) -> None:
        self.sums = {"parameters": 0, "quantization_state": 0, "buffers": 0}
        self._seen: set[tuple[torch.device, int]] = set()

    def add(self, tensor: torch.Tensor, kind: str) -> None:
        leaves = sorted(_leaves(tensor), key=lambda leaf: leaf.untyped_storage().nbytes(), reverse=True)
        for position, leaf in enumerate(leaves):
            storage = leaf.untyped_storage()
            key = (leaf.device, storage.data_ptr())
            if leaf.device.type == "meta" or key in self._seen:
                continue
            self._seen.add(key)
            # Of a quantized tensor subclass the largest inner tensor holds the codes; scales and zero points are fewer.
            self.sums["quantization_state" if position else kind] += storage.nbytes()


def _leaves(tensor: Any) -> Iterator[torch.Tensor]:  # Any: torch's guard for wrapper subclasses is no class
    """Yield the plain tensors that a tensor is made of; a wrapper subclass has no storage of its own."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _leaves(getattr(tensor, name))


def _attached(holder: Any) -> Iterator[torch.Tensor]:  # Any: a parameter or a state object of bitsandbytes
    """Yield the tensors among an object's attributes, and those of the state objects that it holds."""
    for name, value in vars(holder).items():
        if type(value).__name__ in _STATE_CLASSES:
            yield from _attached(value)
        elif isinstance(value, torch.Tensor) and name != "idx":  # outlier columns of the last input, not of the weights
            yield value


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is memory that could not be had, on any device."""
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:
        known.add(id(seen))
        text = describe(seen)
        if isinstance(seen, torch.OutOfMemoryError | MemoryError) or any(part in text for part in _OUT_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass
class PeakMemory:
    """The most memory held during a piece of work, above what was held when it began.

    Attributes:
        bytes: filled in when the work ends; ``None`` where the system does not tell.
        reason: why `bytes` is ``None``; empty when it is not.
    """

    bytes: int | None = None
    reason: str = field(default="the work has not ended")


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[PeakMemory]:
    """Measure the most memory that the body of a ``with`` statement takes on `device`.

    On CUDA this is what tensors took (``max_memory_allocated``), summed over the visible devices; what PyTorch's
    allocator reserves and what ``nvidia-smi`` shows are larger, by unused parts of blocks and by the CUDA context.
    On a CPU it is the process's resident memory (``VmHWM`` of Linux), with the pages of memory-mapped files it touched.
    Two of these cannot be nested: entering resets the mark the outer one reads.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``, with or without an index.
    """
    kind = torch.device(device).type
    peak = PeakMemory()
    _free()
    if kind == "cuda":
        torch.cuda.init()  # the statistics below exist only after it
        before = _cuda_allocated()
        for index in range(len(before)):
            torch.cuda.reset_peak_memory_stats(index)
        try:
            yield peak
        finally:
            most = sum(torch.cuda.max_memory_allocated(index) for index in range(len(before)))
            peak.bytes, peak.reason = most - sum(before), ""
    elif kind == "cpu" and _status_bytes("VmHWM") is not None:
        yield from _resident_peak(peak)
    else:
        where = f"the {kind} backend" if kind != "cpu" else f"{sys.platform} without VmHWM in /proc/self/status"
        try:
            yield peak
        finally:
            peak.reason = f"{where} keeps no high-water mark that can be reset"


def _resident_peak(peak: PeakMemory) -> Iterator[PeakMemory]:
    with contextlib.suppress(OSError):  # where this is not allowed, the mark below tells
        Path("/proc/self/clear_refs").write_text("5")
    before, mark = _status_bytes("VmRSS") or 0, _status_bytes("VmHWM") or 0
    try:
        yield peak
    finally:
        most = _status_bytes("VmHWM") or 0
        if most <= mark and mark > before + _MARK_SLACK:
            peak.reason = "the work stayed below an earlier peak of the process, whose mark cannot be reset here"
        else:
            peak.bytes, peak.reason = max(0, most - before), ""


def _status_bytes(name: str) -> int | None:
    """Read one line of ``/proc/self/status``, such as ``VmRSS:  1234 kB``; ``None`` where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def _cuda_allocated() -> list[int]:
    return [torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count())]


def _free() -> None:
    """Give back what is no longer used, so that work which uses it again is seen to take it."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing before CUDA is used
    if sys.platform == "linux":
        # glibc keeps freed blocks; without this a second run of the same work would seem to take nothing.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


__all__ = [
    "PeakMemory",
    "WeightBytes",
    "is_out_of_memory",
    "own_tensors",
    "peak_memory",
    "stored_elements",
    "tensor_bytes",
    "touch_weights",
    "weight_bytes",
]
