"""Options of the quanto quantizer, and the predicted size of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError, UnsupportedError
from llmquant.models.headers import TensorInfo
from llmquant.models.info import ModelInfo
from llmquant.quantizers.fitting import check_linear_layers, check_multiples
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

# quanto chooses the group size of int4 by a row's width; it uses PyTorch's kernels only for this size.
GROUP_SIZE = 128
# Two float32 per layer, for quantized inputs, which transformers does not offer.
_INPUT_SCALES = 2 * 4
_CODES: Mapping[str, tuple[str, float]] = {
    "int8": ("int8", 8.0),
    "int4": ("int4", 4.0),
    "float8": ("float8_e4m3fn", 8.0),
}


@dataclass(frozen=True)
class QuantoOptions:
    """optimum-quanto, weights only.

    Attributes:
        weights: code of the weights. ``int8`` and ``float8`` (E4M3) have one scale per row; ``int4`` has a scale and a
            shift per 128 weights, and needs rows whose length is a multiple of 128: quanto unpacks other rows with an
            extension that it compiles on the machine, and whose layers fail in PyTorch's inference mode.
        dtype: type of everything that is not quantized, and of the products, for example bfloat16.
    """

    weights: Literal["int8", "int4", "float8"] = "int8"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.weights == "int4" and self.dtype != "bfloat16":
            raise OptionError(f"quanto's int4 kernels are for bfloat16, not {self.dtype}")

    def check(self, model: ModelInfo, device: str) -> None:
        layers = check_linear_layers(model, device, "quanto")
        if self.weights == "int4":
            hint = "Use torchao_int4_g64, torchao_int4_g32 or hqq_4bit_g64."
            check_multiples(layers, 16, GROUP_SIZE, "quanto's int4 kernel", hint)
            narrow = [layer for layer in layers if layer.shape[1] == GROUP_SIZE]
            if narrow:
                raise UnsupportedError(
                    f"{narrow[0].name} has rows of {GROUP_SIZE} weights; quanto's int4 kernel needs longer rows",
                    hint=hint,
                )
        if self.weights == "int8" and device == "cpu" and self.dtype == "bfloat16":
            # PyTorch's kernel reads past the end of rows of other widths: wrong numbers, or a crash.
            hint = "Use the option dtype=float32, or torchao_int8."
            check_multiples(layers, 1, 16, "quanto's int8 kernel for CPUs in bfloat16", hint)

    def check_save(self, device: str) -> None:
        raise UnsupportedError(
            "transformers cannot save weights quantized by quanto",
            hint="Use torchao_int8 or torchao_float8, which are similar and can be saved.",
        )

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        layers = model.linear_layers()
        size = 4 if self.dtype == "float32" else 2
        return plain_bytes(model, size, quantized=layers) + sum(self._layer_bytes(layer, size) for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        code, bits = _CODES[self.weights]
        block_size = GROUP_SIZE if self.weights == "int4" else None
        return {"method": "quanto", "code": code, "bits": bits, "block_size": block_size, "compute_dtype": self.dtype}

    def _layer_bytes(self, layer: TensorInfo, size: int) -> int:
        if self.weights == "int4":
            return layer.elements // 2 + 2 * size * (layer.elements // GROUP_SIZE) + _INPUT_SCALES
        return layer.elements + layer.shape[0] * size + _INPUT_SCALES
