"""Options of the HQQ quantizer, and the predicted size of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.quantizers.fitting import check_group_size, check_linear_layers, check_multiples
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

# An int32 holds ten 3-bit codes.
_THREES = 10


@dataclass(frozen=True)
class HqqOptions:
    """HQQ: scales and zero points of round-to-nearest, refined from the weights alone.

    Attributes:
        bits: bits per code, for example 4; codes of 3 bits take 3.2 bits.
        group_size: number of weights in a row that share a scale and a zero point, for example 64.
        dtype: type of everything that is not quantized, of the scales, and of the products, for example bfloat16.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: Literal[32, 64, 128] = 64
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def check(self, model: ModelInfo, device: str) -> None:
        layers = check_linear_layers(model, device, "HQQ")
        check_group_size(model, layers, self.group_size)
        if self.bits != 3:
            check_multiples(layers, 8 // self.bits, 1, f"HQQ's packing of {self.bits} bits", "Use 8 or 3 bits.")

    def check_save(self, device: str) -> None:
        raise UnsupportedError(
            "transformers cannot load a checkpoint of HQQ, so none is written",
            hint="Use gptq_4bit_g128, awq_4bit_g128 or bnb_4bit_nf4, which can be written.",
        )

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        layers = model.linear_layers()
        size = 4 if self.dtype == "float32" else 2
        groups = [layer.elements // self.group_size for layer in layers]
        quantized = sum(self._code_bytes(count) + 2 * count * size for count in groups)
        return plain_bytes(model, size, quantized=layers) + quantized

    def requests(self) -> Mapping[str, Json]:
        return {
            "method": "hqq",
            "code": f"int{self.bits}",
            "bits": float(self.bits),
            "block_size": self.group_size,
            "compute_dtype": self.dtype,
        }

    def _code_bytes(self, groups: int) -> int:
        if self.bits == 3:
            return 4 * -(-groups // _THREES) * self.group_size
        return groups * self.group_size * self.bits // 8
