"""Rules of all methods that start from floating-point weights: quantized checkpoints are refused."""

from __future__ import annotations

from collections.abc import Collection

from llmquant.errors import UnsupportedError
from llmquant.models.headers import DTYPE_BYTES, TensorInfo
from llmquant.models.info import ModelInfo


def refuse_quantized(model: ModelInfo) -> None:
    """Refuse a checkpoint that is quantized already.

    Raises:
        UnsupportedError: if the checkpoint is quantized, because neither a second quantization nor a quantized baseline
            would give a meaningful comparison.
    """
    if model.quantized_as:
        raise UnsupportedError(
            f"{model.source} is quantized already ({model.quantized_as})",
            hint=f'Use the original checkpoint as the model, and this one as -q "prequantized({model.source})".',
        )


def plain_bytes(model: ModelInfo, dtype_bytes: int, *, quantized: Collection[TensorInfo] = ()) -> int:
    """Predict the bytes of all tensors that are not `quantized`: tied weights once, integers as stored, rotary buffers.

    Args:
        dtype_bytes: bytes per loaded floating-point number.
    """
    names = {tensor.name for tensor in quantized}
    rest = (tensor for tensor in model.weights if tensor.name not in names)
    return _rotary_bytes(model) + sum(
        t.elements * (dtype_bytes if "int" not in t.dtype and t.dtype != "bool" else DTYPE_BYTES[t.dtype]) for t in rest
    )


def _rotary_bytes(model: ModelInfo) -> int:
    """Predict the bytes of transformers' rotary embedding: two copies of the frequencies, in float32."""
    config = model.text_config
    if not any(key in config for key in ("rope_theta", "rope_parameters", "rope_scaling")):
        return 0
    heads = int(config.get("num_attention_heads") or 1)
    head_dim = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    return 2 * (head_dim // 2) * 4
