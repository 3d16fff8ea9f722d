"""Group sizes and the widths they have to divide."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.errors import UnsupportedError
from llmquant.models import ModelInfo
from llmquant.weight_headers import TensorInfo

_USUAL = (32, 64, 128)
# One scale a row: what GPTQ's and AWQ's checkpoints write for it.
WHOLE_ROW = -1


def check_group_size(model: ModelInfo, layers: Sequence[TensorInfo], group_size: int) -> None:
    """Refuse a group size that does not divide the input width of every layer; -1 is a whole row.

    Backends quantize and save such layers without complaint, and fail in the first forward pass.

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
