"""Compare a quantizer's description of the loaded weights with the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from llmquant.errors import PluginError
from llmquant.loading.memory import elements_by_kind, own_tensors
from llmquant.plugins.quantizer import AppliedQuantization


def check_applied(applied: Any, module: torch.nn.Module, plugin: str) -> None:  # Any: what a third party returned
    """Refuse an `AppliedQuantization` of the wrong type, or one that contradicts the module.

    Args:
        plugin: the quantizer's name, for error messages.

    Raises:
        PluginError: naming the field, its value and what the module holds.
    """
    if not isinstance(applied, AppliedQuantization):
        raise PluginError(f"{plugin}: applied() returned {type(applied).__name__}, not AppliedQuantization")
    for name, wrong in _wrong_types(applied):
        raise PluginError(f"{plugin}: applied() says {name} {getattr(applied, name)!r}", hint=f"It must be {wrong}.")
    for name, found, hint in (*_dtypes(applied, module), *_layers(applied, module), *_bits(applied, module)):
        raise PluginError(f"{plugin}: applied() says {name} {getattr(applied, name)!r}, and {found}", hint=hint)


def _wrong_types(applied: Any) -> Iterator[tuple[str, str]]:  # Any: fields of any type
    for name in ("method", "code", "compute_dtype"):
        if not isinstance(getattr(applied, name), str) or not getattr(applied, name):
            yield name, "a text that is not empty"
    if isinstance(applied.bits, bool) or not isinstance(applied.bits, int | float) or not 0 < applied.bits < math.inf:
        yield "bits", "a number above 0"
    if applied.block_size is not None and not _is_count(applied.block_size):
        yield "block_size", "a whole number, or None"
    if not isinstance(applied.double_quantization, bool):
        yield "double_quantization", "True or False"
    if not _is_count(applied.layers_quantized):
        yield "layers_quantized", "a whole number"
    if not isinstance(applied.note, str):
        yield "note", "a text"
    left = applied.layers_left
    if not isinstance(left, tuple | list) or not all(isinstance(name, str) for name in left):
        yield "layers_left", "names of layers"
    counts = applied.dtypes
    if not isinstance(counts, Mapping) or not all(isinstance(k, str) and _is_count(v) for k, v in counts.items()):
        yield "dtypes", "a dictionary of whole numbers by type"


def _dtypes(applied: AppliedQuantization, module: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    """Compare the stored elements: at least all parameters, at most buffers and quantization state too."""
    kinds = elements_by_kind(module)
    least, most = kinds["parameters"], sum(kinds.values(), start=type(kinds["parameters"])())
    for dtype in {**applied.dtypes, **least}:
        said = applied.dtypes.get(dtype, 0)
        if not least[dtype] <= said <= most[dtype]:
            yield (
                "dtypes",
                f"{most[dtype]} elements are stored as {dtype}",
                "Count stored elements by storage dtype: llmquant.loading.memory.stored_elements(module).",
            )


def _layers(applied: AppliedQuantization, module: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    holding = {
        name
        for name, layer in module.named_modules()
        if any(tensor.dim() > 1 or not tensor.is_floating_point() for tensor in own_tensors(layer))
    }
    unknown = [name for name in applied.layers_left if name not in holding]
    if unknown:
        yield "layers_left", f"{unknown[0]!r} holds no weights", "Name modules as named_modules() does."
    if len(set(applied.layers_left)) < len(applied.layers_left):
        yield "layers_left", "a layer is named twice", "Name each layer once."
    if applied.layers_quantized + len(applied.layers_left) > len(holding):
        yield "layers_quantized", f"only {len(holding)} layers hold weights", "Count each layer once."
    if applied.method == "none" and applied.layers_quantized:
        yield "layers_quantized", "the method is 'none'", "Name the method, or count 0."


def _bits(applied: AppliedQuantization, module: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    """Compare the bits with the size of the linear layers: codes take no less, and more only if they are simulated."""
    held = weights = 0
    for name, layer in module.named_modules():
        rows, columns = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        if isinstance(rows, int) and isinstance(columns, int) and name not in applied.layers_left:
            weights += rows * columns
            held += 8 * sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(layer))
    if held and held / weights < 0.99 * applied.bits:
        yield "bits", f"the linear layers hold {held / weights:.2f} bits per weight", "Read the bits from the weights."


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


__all__ = ["check_applied"]
