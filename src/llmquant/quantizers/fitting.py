"""Devices, architectures and widths that methods for linear layers refuse before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.errors import UnsupportedError
from llmquant.models.headers import TensorInfo
from llmquant.models.info import CONV1D_MODELS, ModelInfo
from llmquant.quantizers.plain_weights import refuse_quantized

_USUAL = (32, 64, 128)
# The group size that GPTQ's and AWQ's checkpoints write for one scale per row.
WHOLE_ROW = -1


def check_linear_layers(
    model: ModelInfo, device: str, method: str, *, experts: str = "", conv1d: bool = False
) -> tuple[TensorInfo, ...]:
    """Refuse models and devices that `method` does not support.

    Args:
        experts: why the method does not support a mixture of experts; empty if it does.
        conv1d: whether the method quantizes transformers' Conv1D layers.

    Returns:
        The layers that `method` will quantize.

    Raises:
        UnsupportedError: if `model` is quantized already or has nothing to quantize, or for the device.
    """
    refuse_quantized(model)
    if device not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"{method} presets run on CUDA and on CPUs, not on {device}",
            hint="Use bf16_baseline on this device, or the CPU to measure this preset's quality.",
        )
    kind = model.text_config.get("model_type")
    if kind in CONV1D_MODELS and not conv1d:
        raise UnsupportedError(
            f"the layers of {model.source} (model type {kind}) are Conv1D, which {method} does not quantize",
            hint="Use bnb_4bit_nf4 or bnb_8bit.",
        )
    if experts and any("expert" in tensor.name for tensor in model.weights):
        raise UnsupportedError(
            f"{model.source} is a mixture of experts, {experts}",
            hint="Use bnb_4bit_nf4, which reports that it leaves the experts unquantized.",
        )
    layers = model.linear_layers()
    if not layers:
        raise UnsupportedError(
            f"{model.source} has no linear layers in its blocks that {method} could quantize",
            hint="Use bf16_baseline.",
        )
    return layers


def check_multiples(layers: Sequence[TensorInfo], rows: int, columns: int, kernel: str, hint: str) -> None:
    """Refuse layers whose shape is not a multiple of the kernel's tile.

    Args:
        layers: weights of shape ``(out_features, in_features)``.
        rows: number of which ``out_features`` must be a multiple.
        columns: number of which ``in_features`` must be a multiple.
        kernel: name of the kernel with this requirement, for the message.
        hint: the alternative to suggest.

    Raises:
        UnsupportedError: naming the first such layer.
    """
    wrong = [layer for layer in layers if layer.shape[0] % rows or layer.shape[1] % columns]
    if wrong:
        raise UnsupportedError(
            f"{wrong[0].name} has {wrong[0].shape[0]} x {wrong[0].shape[1]} weights; "
            f"{kernel} needs multiples of {rows} x {columns} ({len(wrong)} of {len(layers)} layers do not fit)",
            hint=hint,
        )


def check_group_size(model: ModelInfo, layers: Sequence[TensorInfo], group_size: int) -> None:
    """Refuse a group size that does not divide the input width of every layer; -1 means a whole row.

    Backends quantize and save such layers without an error, and fail in the first forward pass.

    Args:
        layers: weights of shape ``(out_features, in_features)``.

    Raises:
        UnsupportedError: naming the first such layer and the usual group sizes that fit all of them.
    """
    if group_size == WHOLE_ROW:
        return
    widths = {layer.shape[1] for layer in layers}
    wrong = [layer for layer in layers if layer.shape[1] % group_size]
    if wrong:
        fit = [size for size in _USUAL if all(width % size == 0 for width in widths)]
        raise UnsupportedError(
            f"a group size of {group_size} does not divide {wrong[0].shape[1]}, the input width of {wrong[0].name} "
            f"({len(wrong)} of {len(layers)} layers of {model.source})",
            hint=f"Group sizes that fit: {', '.join(map(str, fit)) or 'none of 32, 64, 128'}.",
        )
