"""Compare a quantizer's description of the loaded weights with the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from llmquant.errors import PluginError
from llmquant.loading.memory import elements_by_kind, own_tensors
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.study.reading import checked_fields


def check_applied(applied: Any, module: torch.nn.Module, plugin: str) -> None:  # Any: what a third party returned
    """Refuse an `AppliedQuantization` of the wrong type, or one that contradicts the module.

    Args:
        plugin: the quantizer's name, for error messages.

    Raises:
        PluginError: naming the field, its value and what the module holds.
    """
    if not isinstance(applied, AppliedQuantization):
        raise PluginError(f"{plugin}: applied() returned {type(applied).__name__}, not AppliedQuantization")
    checked_fields(applied, f"{plugin}: applied()")
    for check in (_values, _dtypes, _layers, _bits):
        for name, found, hint in check(applied, module):
            raise PluginError(f"{plugin}: applied() says {name} {getattr(applied, name)!r}, and {found}", hint=hint)


def _values(applied: AppliedQuantization, _: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    for name in ("method", "code", "compute_dtype"):
        if not getattr(applied, name):
            yield name, "a name is not empty", "The table shows it."
    if applied.bits <= 0:
        yield "bits", "a weight has more than 0 bits", "Read the bits from the weights."


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
