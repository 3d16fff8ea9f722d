"""Options of the two bitsandbytes quantizers, and how large their weights will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.call import Json
from llmquant.errors import OptionError, UnsupportedError
from llmquant.models import ModelInfo
from llmquant.quantizers.plain_weights import plain_bytes, refuse_quantized

# transformers does not pass a block size on, so bitsandbytes' defaults hold: 64 weights, and 256 scales, share one.
BLOCK_SIZE = 64
_NESTED_BLOCK_SIZE = 256
_CODE_BYTES = 16 * 4
_NESTED_CODE_BYTES = 256 * 4
_OFFSET_BYTES = 4


@dataclass(frozen=True)
class Bnb4bitOptions:
    """bitsandbytes 4-bit.

    Attributes:
        quant_type: the 16 values a weight can take: quantiles of a normal distribution, or a 4-bit float.
        double_quant: quantize the scales too: 4.127 bits a weight instead of 4.5.
        compute_dtype: in which the quantized layers multiply. ``auto`` is float16 on CUDA, or bfloat16 for Gemma 3,
            which float16 cannot hold. On a CPU it is bfloat16 where there is AVX512-BF16, because bitsandbytes' kernel
            knows nothing else there, and float32 elsewhere: twice as fast as bfloat16 at reading a prompt (3.5 s
            against 7.0 s for 1,024 tokens of a 135M model on two cores), as fast at generating, and not less exact.
            Whatever is used is in ``applied``.

    Everything that is not quantized (embeddings, norms, the head) is kept in the compute type where that has 16 bits,
    else in bfloat16.
    """

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse models and devices this cannot work on.

        Raises:
            UnsupportedError: if `model` is quantized already or has nothing to quantize, or for the device.
        """
        _check(model, device)

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the loaded weights, in bytes: codes, scales, tables and all that stays as it is.

        On a CPU with AVX512-BF16 bitsandbytes repacks the weights in the first forward pass and keeps the scales as
        bfloat16 from then on: the quantized part grows by 3 % with double quantization and shrinks by 6 % without.
        """
        layers = model.linear_layers()
        return plain_bytes(model, 2, quantized=layers) + sum(self._layer_bytes(layer.elements) for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        """Return what must be found in the loaded weights."""
        found: dict[str, Json] = {"method": "bitsandbytes", "code": self.quant_type, "bits": 4.0}
        found["double_quantization"] = self.double_quant
        return found if self.compute_dtype == "auto" else {**found, "compute_dtype": self.compute_dtype}

    def _layer_bytes(self, weights: int) -> int:
        scales = -(-weights // BLOCK_SIZE)
        codes = -(-weights // 2) + _CODE_BYTES
        if not self.double_quant:
            return codes + 4 * scales
        nested = 4 * -(-scales // _NESTED_BLOCK_SIZE) + _NESTED_CODE_BYTES + _OFFSET_BYTES
        return codes + scales + nested


@dataclass(frozen=True)
class Bnb8bitOptions:
    """bitsandbytes LLM.int8().

    Attributes:
        threshold: input columns with a value above this multiply in 16 bits, not in int8; 0 turns that off.
        dtype: of everything that is not quantized. ``auto`` is float16 on CUDA (bfloat16 for Gemma 3) and bfloat16 on
            a CPU. Inputs of the quantized layers are rounded to float16 in any case, and weights are before they are
            quantized.
    """

    threshold: float = 6.0
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise OptionError(f"threshold is {self.threshold}", hint="Give 0 (no outliers) or more; 6.0 is usual.")

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse models and devices this cannot work on.

        Raises:
            UnsupportedError: if `model` is quantized already or has nothing to quantize, or for the device.
        """
        _check(model, device)

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the loaded weights, in bytes: a byte a weight, a float32 scale a row, and all that stays as it is."""
        layers = model.linear_layers()
        rest = plain_bytes(model, 4 if self.dtype == "float32" else 2, quantized=layers)
        return rest + sum(layer.elements + 4 * layer.shape[0] for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        """Return what must be found in the loaded weights."""
        return {"method": "bitsandbytes", "code": "int8", "bits": 8.0}


def _check(model: ModelInfo, device: str) -> None:
    refuse_quantized(model)
    if device not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"bitsandbytes presets run on CUDA and on CPUs, not on {device}",
            hint="The nearest that works there is bf16_baseline; for this preset's quality use the CPU.",
        )
    if not model.linear_layers():
        raise UnsupportedError(
            f"{model.source} has no linear layers in its blocks that bitsandbytes could quantize",
            hint="Use bf16_baseline.",
        )
