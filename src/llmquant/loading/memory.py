"""Measure the memory that a model's weights hold, and the peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from llmquant.errors import RunError, describe

# A layer's class names its tensors of scales, zero points and so on in this attribute; its other tensors are weights.
STATE_ATTRIBUTE = "quantization_state"
# Layers of packages that do not name them: with one of these attributes a layer holds its codes there, and everything
# else in it except the bias belongs to the quantization; names and copies differ by kernel (GPTQ, AWQ, HQQ,
# compressed-tensors).
_CODE_NAMES = frozenset({"qweight", "qweight_uint8", "int8_weight_nk", "weight_packed"})
# Tensors next to quantized weights that keep their name.
_STATE_NAMES = frozenset({"weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx"})
# Classes of the state that bitsandbytes attaches to parameters (the first) and to 8-bit layers (the second), by name,
# because the package may not be installed.
_STATE_CLASSES = frozenset({"QuantState", "MatmulLtState"})
# Messages of torch's allocators that raise a plain RuntimeError: the CPU's (two versions), MPS's and cuBLAS's.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# A reset mark and the resident memory read after it differ by the memory allocated in between.
_MARK_SLACK = 2**20


@dataclass(frozen=True)
class WeightBytes:
    """Bytes that a module keeps between two forward passes; every storage counts once.

    Attributes:
        parameters: bytes of weights; for quantized weights, of the codes only.
        quantization_state: bytes of scales, zero points, offsets and code tables.
        buffers: bytes of everything else that the modules hold, such as rotary frequencies.
    """

    parameters: int
    quantization_state: int
    buffers: int

    @property
    def total(self) -> int:
        """Return the sum of the three."""
        return self.parameters + self.quantization_state + self.buffers


def weight_bytes(module: torch.nn.Module) -> WeightBytes:
    """Count the bytes of memory that `module` holds.

    Tied weights count once. Unlike the sum of the parameters, the count includes the quantization state of
    bitsandbytes, which is attached to the parameter (4 bit) or to the layer (8 bit, after the first forward pass), and
    the inner tensors of tensor subclasses (torchao, quanto). The count can change later: on a CPU with AVX512-BF16 the
    first forward pass of bitsandbytes' 4-bit layers repacks the weights and expands nested scales to bfloat16.

    Returns:
        Bytes on all devices together; tensors on the meta device hold nothing.
    """
    sums = _storage_bytes(_held(module))
    return WeightBytes(sums["parameters"], sums["quantization_state"], sums["buffers"])


def touch_weights(module: torch.nn.Module) -> None:
    """Read one byte of every page of the weights on the CPU.

    A checkpoint loaded in the dtype it was saved in is memory-mapped, and takes no memory before its first use. The
    memory of loading is comparable between dtypes only if loading ends with this function, inside `peak_memory`.
    """
    for tensor, _ in _held(module):
        for leaf in _leaves(tensor):
            if leaf.device.type == "cpu":
                torch.empty(0, dtype=torch.uint8).set_(leaf.untyped_storage())[::4096].sum()


def tensor_bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Count the bytes of all `tensors` together; every storage counts once."""
    return _storage_bytes((tensor, "parameters") for tensor in tensors).total()


def stored_elements(module: torch.nn.Module) -> dict[str, int]:
    """Count the stored elements of a module's weights by storage dtype; tied weights count once.

    For packed weights the packed words count, and so does the quantization state; other buffers do not count.
    """
    kinds = elements_by_kind(module)
    return dict(kinds["parameters"] + kinds["quantization_state"])


def elements_by_kind(module: torch.nn.Module) -> dict[str, Counter[str]]:
    """Count the stored elements of everything that a module holds, by the fields of `WeightBytes` and dtype."""
    found = {name: Counter[str]() for name in ("parameters", "quantization_state", "buffers")}
    for leaf, kind in _once(_held(module), torch.Tensor.data_ptr):
        found[kind][str(leaf.dtype).removeprefix("torch.")] += leaf.numel()
    return found


def own_tensors(layer: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that one layer holds itself: parameters, buffers and their quantization state."""
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
    """Yield the tensors of a module, each with its field of `WeightBytes`; a tensor may be yielded twice."""
    for child in module.modules():
        kind_of = _kinds(child)
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            yield parameter, kind_of(name, "parameters")
            for tensor in _attached(parameter):
                yield tensor, "quantization_state"
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
            yield buffer, kind_of(name, "buffers")
    # Attributes come last, so that a second name for a parameter or a buffer is not counted as something else.
    for child in module.modules():
        kind_of = _kinds(child)
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                yield value, kind_of(name, "buffers")
            elif type(value).__name__ in _STATE_CLASSES:
                for tensor in _attached(value):
                    yield tensor, "quantization_state"


def _kinds(module: torch.nn.Module) -> Callable[[str, str], str]:
    """Return a function from a tensor's name in a layer, and its kind in ordinary layers, to its kind."""
    declared = getattr(module, STATE_ATTRIBUTE, None)
    if isinstance(declared, tuple):
        return lambda name, _: "quantization_state" if name in declared else "parameters"
    names = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    if not _CODE_NAMES.isdisjoint(names):
        return lambda name, _: "parameters" if name in _CODE_NAMES or name == "bias" else "quantization_state"
    return lambda name, otherwise: "quantization_state" if name in _STATE_NAMES else otherwise


def _storage_bytes(tensors: Iterable[tuple[torch.Tensor, str]]) -> Counter[str]:
    sums = Counter[str]()
    for leaf, kind in _once(tensors, lambda leaf: leaf.untyped_storage().data_ptr()):
        sums[kind] += leaf.untyped_storage().nbytes()
    return sums


def _once(
    tensors: Iterable[tuple[torch.Tensor, str]], address: Callable[[torch.Tensor], int]
) -> Iterator[tuple[torch.Tensor, str]]:
    """Yield the plain tensors in memory, the first at each address, each with its field of `WeightBytes`."""
    seen = set[tuple[torch.device, int]]()
    for tensor, kind in tensors:
        leaves = sorted(_leaves(tensor), key=lambda leaf: leaf.numel() * leaf.element_size(), reverse=True)
        for position, leaf in enumerate(leaves):
            key = (leaf.device, address(leaf))
            if leaf.device.type != "meta" and leaf.numel() and key not in seen:
                seen.add(key)
                # The largest inner tensor of a quantized tensor subclass holds the codes, the others scales.
                yield leaf, "quantization_state" if position else kind


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
        elif isinstance(value, torch.Tensor) and name != "idx":  # outlier columns of the last input, not weights
            yield value


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error or one of its causes is a failed memory allocation, on any device."""
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
    """Peak memory during a piece of work, above the memory held when the work began.

    Attributes:
        bytes: filled in when the work ends; ``None`` where the system does not report the peak.
        reason: why `bytes` is ``None``; empty when `bytes` is a number.
    """

    bytes: int | None = None
    reason: str = field(default="the work has not ended")


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[PeakMemory]:
    """Measure the peak memory that the body of a ``with`` statement takes on `device`.

    On CUDA the peak is that of tensors (``max_memory_allocated``), summed over the visible devices; PyTorch's
    allocator reserves more (unused parts of blocks), and ``nvidia-smi`` shows more (the CUDA context).
    On a CPU the peak is the process's resident memory (``VmHWM`` on Linux), with the touched pages of memory-mapped
    files. Do not nest two measurements: entering the inner one resets the mark that the outer one reads.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``, with or without an index.

    Raises:
        RunError: if the device is a GPU and PyTorch finds none.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"a GPU is needed, and PyTorch {torch.__version__} finds no GPU on this machine",
            hint="Run nvidia-smi there: the driver may be missing or older than this PyTorch needs."
            if torch.version.cuda
            else "This PyTorch is built without CUDA: install a build with CUDA.",
        )
    peak = PeakMemory()
    _free()
    if kind == "cuda":
        torch.cuda.init()  # the statistics below exist only after this call
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
    with contextlib.suppress(OSError):  # where this is not allowed, the mark below shows it
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


def give_back_freed() -> None:
    """Return freed memory to the system, between measurements and between steps that allocate large tensors on a CPU.

    glibc keeps freed blocks, and versions before 2.38 seldom use them again for tensors below 32 MiB: in a loop over
    tensors of 16 MiB the resident memory grew by 600 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def held_bytes(device: str) -> int:
    """Return the memory that is held while nothing is done: by tensors on GPUs, or on a CPU by the whole process."""
    _free()
    if torch.device(device).type == "cuda":  # whose context takes memory of the process too
        return sum(_cuda_allocated())
    return _status_bytes("VmRSS") or int(psutil.Process().memory_info().rss)


def kept_bytes() -> int:
    """Return the memory that this process keeps when it does nothing: pages of its own, and tensors on GPUs."""
    _free()
    return (_status_bytes("RssAnon") or psutil.Process().memory_info().rss) + sum(_cuda_allocated())


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
    """Release unused memory, so that a measurement counts it when later work allocates it again."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing before CUDA is used
    give_back_freed()
