"""Read back the settings of GPTQModel's packed layers (GPTQ and AWQ), whoever made the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.quantizers.reading import elements_by_dtype, linear_names, only

_WORD_BITS = 32


def read_gptqmodel_layers(module: torch.nn.Module) -> AppliedQuantization:
    """Read method, bits, group size, order and symmetry from the packed tensors.

    The function works before and after the first forward pass, in which some kernels repack their layers. The layers'
    own ``sym`` and ``desc_act`` are not used: transformers loads GPTQ layers through optimum, which swaps the two.

    Raises:
        NotHonouredError: if there is no packed layer, if the layers differ, if a layer's tensors do not fit its
            settings, or if its kernel would compute something else.
    """
    from gptqmodel.nn_modules.qlinear import AWQuantLinear, GroupedQuantLinear  # already imported if such layers exist

    named = [(name, child) for name, child in module.named_modules() if isinstance(child, GroupedQuantLinear)]
    if not named:
        raise NotHonouredError("no layer of the model is packed as GPTQ or AWQ")
    for name, layer in named:
        _check_tensors(name, layer)
    layers = [layer for _, layer in named]
    bits = only((layer.bits for layer in layers), "bits")
    counts = elements_by_dtype(module)
    plain = max(counts, key=lambda dtype: counts[dtype])
    return AppliedQuantization(
        method=only(("awq" if isinstance(layer, AWQuantLinear) else "gptq" for layer in layers), "method"),
        code=f"int{bits}",
        bits=float(bits),
        block_size=only((_block_size(layer) for layer in layers), "group size"),
        compute_dtype=only((_compute_dtype(layer, plain) for layer in layers), "compute type"),
        dtypes=stored_elements(module),
        layers_quantized=len(layers),
        layers_left=linear_names(module, GroupedQuantLinear),
        note=_note(layers),
    )


def _check_tensors(name: str, layer: Any) -> None:  # Any: a layer of GPTQModel
    """Compare a layer's settings with the sizes of its tensors, whatever their layout."""
    weights = layer.in_features * layer.out_features
    held = layer.qweight.numel() * layer.qweight.element_size() * 8
    if held // weights != layer.bits:  # rounded down, because words at the edge may be partly empty
        raise NotHonouredError(f"{name} declares {layer.bits} bits, but holds {held / weights:g} bits per weight")
    groups = math.ceil(layer.in_features / layer.group_size)
    if layer.scales.shape[0] != groups:
        raise NotHonouredError(
            f"{name} has {layer.scales.shape[0]} scales per row; a group size of {layer.group_size} needs {groups}"
        )
    # Seen in 7.6.0: with groups of a whole row on a CPU, this kernel replaces the zero points with zeros.
    if type(layer).__name__ == "TorchFusedLinear" and not _is_symmetric(layer):
        raise NotHonouredError(f"{name} has zero points, which GPTQModel's kernel {type(layer).__name__} ignores")


def _block_size(layer: Any) -> int | None:  # Any: a layer of GPTQModel
    """Return the number of inputs that share a scale; ``None`` for a whole row."""
    return None if layer.requested_group_size == -1 else int(layer.group_size)


def _note(layers: Sequence[Any]) -> str:  # Any: layers of GPTQModel
    symmetric = {_is_symmetric(layer) for layer in layers}
    ordered = any(_is_ordered(layer) for layer in layers)
    parts = [
        "symmetric" if symmetric == {True} else "with zero points",
        "columns ordered by activation (desc_act)" if ordered else "",
        f"kernel {', '.join(sorted({type(layer).__name__ for layer in layers}))}",
    ]
    return "; ".join(part for part in parts if part)


def _is_ordered(layer: Any) -> bool:  # Any: a layer of GPTQModel
    """Return whether inputs are assigned to groups in any order; Marlin's layers sort inputs and store the order."""
    index, order = getattr(layer, "g_idx", None), getattr(layer, "g_idx_sort_indices", None)
    return (index is not None and bool((index.diff() < 0).any())) or (order is not None and order.numel() > 0)


def _is_symmetric(layer: Any) -> bool:  # Any: a layer of GPTQModel
    """Return whether every zero point is the middle code."""
    zeros = layer.qzeros
    if zeros.is_floating_point():  # repacked: the distance of the middle code's value from zero
        return not bool(zeros.any())
    # Version 1 of GPTQ's format stores zero points minus one; most kernels correct that while they are loaded.
    minus_one = hasattr(layer, "qzero_format") and not layer.REQUIRES_FORMAT_V2
    middle = 2 ** (layer.bits - 1) - minus_one
    stream = sum(middle << layer.bits * position for position in range(_WORD_BITS))
    mask = 2**_WORD_BITS - 1
    words = torch.tensor([stream >> _WORD_BITS * i & mask for i in range(layer.bits)], device=zeros.device)
    columns = torch.arange(zeros.shape[1], device=zeros.device) % layer.bits
    return bool(((zeros.long() & mask) == words[columns]).all())


def _compute_dtype(layer: Any, plain: str) -> str:  # Any: a layer of GPTQModel
    """Name the type in which a layer multiplies when the rest of the model is `plain`."""
    kernel = type(layer).__name__
    if kernel.startswith("TorchAten") or (kernel.startswith("TorchFused") and plain == "float32"):
        return "bfloat16"
    if kernel == "AwqTorchLinear" and plain == "float32":
        return "float16"
    return plain
