"""Options of the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.models.info import ModelInfo
from llmquant.quantizers.plain_weights import plain_bytes, refuse_quantized
from llmquant.study.call import Json


@dataclass(frozen=True)
class BaselineOptions:
    """No quantization.

    Attributes:
        dtype: type of every floating-point weight. A CPU runs all three types. A CPU without 16-bit arithmetic reads
            prompts twice as slowly in bfloat16 as in float32, and six times as slowly in float16 (7.7 and 23.5 s
            instead of 3.9 s for 1,024 tokens of a 135M model on two AVX512 cores).
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def check(self, model: ModelInfo, device: str) -> None:
        refuse_quantized(model)

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        return plain_bytes(model, 4 if self.dtype == "float32" else 2)

    def requests(self) -> Mapping[str, Json]:
        return {"method": "none", "code": self.dtype}
