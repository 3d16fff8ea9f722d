"""Options of compressed-tensors, the checkpoint format of vLLM, with data-free rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.models.info import ModelInfo
from llmquant.quantizers.fitting import check_group_size, check_linear_layers
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

# A packed layer also stores its shape: two int64 numbers.
_SHAPE_BYTES = 16


@dataclass(frozen=True)
class CompressedTensorsOptions:
    """Round to nearest, written as compressed-tensors.

    Attributes:
        scheme: ``w8a8``: int8 weights with one scale per row, and inputs rounded to int8 per token at run time;
            ``fp8``: the same in float8 (e4m3); ``w4a16``: int4 weights in groups, inputs not rounded.
        group_size: number of weights that share a scale in ``w4a16``, for example 128; other schemes have one scale
            per row.
    """

    scheme: Literal["w8a8", "w4a16", "fp8"] = "w4a16"
    group_size: Literal[32, 64, 128] = 128

    def check(self, model: ModelInfo, device: str) -> None:
        experts = "fused by transformers into tensors that this method skips"
        layers = check_linear_layers(model, device, "compressed-tensors", experts=experts)
        if self.scheme == "w4a16":
            check_group_size(model, layers, self.group_size)

    def serving(self) -> str:
        """Return what vLLM needs to load the checkpoint."""
        return ""

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the weights after the first forward pass: dequantized to bfloat16, with their scales.

        Before that pass the layers hold the checkpoint's tensors.
        """
        return plain_bytes(model, 2) + self._state_bytes(model)

    def served_bytes(self, model: ModelInfo) -> int:
        """Predict the bytes of the weights as they are stored, before the first forward pass."""
        layers = model.linear_layers()
        codes = sum(layer.elements for layer in layers) * (4 if self.scheme == "w4a16" else 8) // 8
        return plain_bytes(model, 2, quantized=layers) + codes + self._state_bytes(model)

    def _state_bytes(self, model: ModelInfo) -> int:
        layers = model.linear_layers()
        if self.scheme == "w4a16":
            return sum(2 * layer.elements // self.group_size + _SHAPE_BYTES for layer in layers)
        return sum(2 * layer.shape[0] for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        if self.scheme == "w4a16":
            found: dict[str, Json] = {"code": "int4", "bits": 4.0, "block_size": self.group_size}
        else:
            code = "int8" if self.scheme == "w8a8" else "float8_e4m3fn"
            found = {"code": code, "bits": 8.0, "block_size": None}
        return {"method": "compressed-tensors", **found}
