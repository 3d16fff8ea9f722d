"""Options of the two bitsandbytes quantizers, and the predicted size of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError
from llmquant.machine.hardware import cpu_flags
from llmquant.models.info import ModelInfo
from llmquant.quantizers.fitting import check_linear_layers
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

# transformers does not pass on a block size, so bitsandbytes' defaults apply: 64 weights share a scale, and 256 scales
# share a scale.
BLOCK_SIZE = 64
_NESTED_BLOCK_SIZE = 256
_CODE_BYTES = 16 * 4
_NESTED_CODE_BYTES = 256 * 4
OFFSET_BYTES = 4
# Rows that the kernel for CPUs with AVX512-BF16 processes at a time; each row must consist of whole blocks.
_PACKED_ROWS = 32


@dataclass(frozen=True)
class Bnb4bitOptions:
    """bitsandbytes 4-bit.

    Attributes:
        quant_type: the 16 values of a weight: quantiles of a normal distribution, or a 4-bit float.
        double_quant: whether to quantize the scales too: 4.127 bits per weight instead of 4.5.
        compute_dtype: type in which the quantized layers multiply. ``auto`` is bfloat16 on CUDA, as in the usual
            baseline, and on a CPU with AVX512-BF16, whose bitsandbytes kernel computes only in bfloat16. ``auto`` is
            float32 on other CPUs: twice as fast as bfloat16 at reading a prompt (3.5 s instead of 7.0 s for 1,024
            tokens of a 135M model on two cores), as fast at generating, and at least as exact. ``applied`` records the
            type that was used.

    Everything that is not quantized (embeddings, norms, the head) is kept in the compute type if that type has
    16 bits, else in bfloat16.
    """

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"

    def check(self, model: ModelInfo, device: str) -> None:
        check_linear_layers(model, device, "bitsandbytes", conv1d=True)

    def serving(self) -> str:
        """Return what vLLM needs to load the checkpoint."""
        return "vllm-bnb-plugin"  # part of vLLM before version 0.28

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the weights in use: codes, scales, tables and everything that is not quantized.

        On a CPU with AVX512-BF16 bitsandbytes repacks the weights and keeps the scales as bfloat16: the quantized part
        grows by 3 % with double quantization and shrinks by 6 % without. Biases of quantized layers take the compute
        type.
        """
        layers = model.linear_layers()
        packs = packs_on(device)
        compute = computes_in(self, device, packs=packs)
        packs = packs and compute == "bfloat16"
        held = sum(self._layer_bytes(layer.elements, packed=packs and fits_packed(layer.shape)) for layer in layers)
        biases = {layer.name.removesuffix("weight") + "bias" for layer in layers} if compute == "float32" else ()
        widened = 2 * sum(tensor.elements for tensor in model.weights if tensor.name in biases)
        return plain_bytes(model, 2, quantized=layers) + held + widened

    def requests(self) -> Mapping[str, Json]:
        found: dict[str, Json] = {"method": "bitsandbytes", "code": self.quant_type, "bits": 4.0}
        found["double_quantization"] = self.double_quant
        return found if self.compute_dtype == "auto" else {**found, "compute_dtype": self.compute_dtype}

    def _layer_bytes(self, weights: int, *, packed: bool) -> int:
        scales = -(-weights // BLOCK_SIZE)
        codes = -(-weights // 2)
        if packed:
            return codes + packed_state_bytes(scales, nested=self.double_quant)
        if not self.double_quant:
            return codes + _CODE_BYTES + 4 * scales
        nested = 4 * -(-scales // _NESTED_BLOCK_SIZE) + _NESTED_CODE_BYTES + OFFSET_BYTES
        return codes + _CODE_BYTES + scales + nested


def computes_in(options: Bnb4bitOptions, device: str, *, packs: bool) -> Literal["float16", "bfloat16", "float32"]:
    """Resolve ``auto``.

    Args:
        packs: whether bitsandbytes repacks weights on that machine's CPU.
    """
    if options.compute_dtype != "auto":
        return options.compute_dtype
    return "bfloat16" if packs or device == "cuda" else "float32"


@dataclass(frozen=True)
class Bnb8bitOptions:
    """bitsandbytes LLM.int8().

    Attributes:
        threshold: input columns with a value above the threshold multiply in 16 bits, not in int8, for example 6.0;
            0 turns the threshold off.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA (bfloat16 for Gemma 3) and
            bfloat16 on a CPU. Inputs of the quantized layers are always rounded to float16, and so are weights before
            quantization.
    """

    threshold: float = 6.0
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise OptionError(f"threshold is {self.threshold}", hint="Use 0 (no outliers) or more; 6.0 is usual.")

    def row_independent(self) -> bool:
        """Return whether a batch's rows are independent: one row's outlier excludes its column from int8 for all."""
        return self.threshold == 0

    def check(self, model: ModelInfo, device: str) -> None:
        check_linear_layers(model, device, "bitsandbytes", conv1d=True)

    def serving(self) -> str:
        """Return what vLLM needs to load the checkpoint."""
        return "vllm-bnb-plugin"  # part of vLLM before version 0.28

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the loaded weights: one per weight, a float32 scale per row, and unquantized weights."""
        layers = model.linear_layers()
        rest = plain_bytes(model, 4 if self.dtype == "float32" else 2, quantized=layers)
        return rest + sum(layer.elements + 4 * layer.shape[0] for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        return {"method": "bitsandbytes", "code": "int8", "bits": 8.0}


def packs_on(device: str) -> bool:
    """Predict whether bitsandbytes repacks 4-bit weights in the first forward pass; known for Linux only."""
    return device == "cpu" and "avx512_bf16" in cpu_flags()


def fits_packed(shape: Sequence[int]) -> bool:
    """Return whether bitsandbytes' kernel for AVX512-BF16 supports a layer ``(out_features, in_features)``."""
    rows, columns = shape
    return rows % _PACKED_ROWS == 0 and columns % BLOCK_SIZE == 0


def packed_state_bytes(scales: int, *, nested: bool) -> int:
    """Predict the bytes of a repacked layer besides its codes; the offset of nested quantization remains."""
    return 2 * scales + _CODE_BYTES + (OFFSET_BYTES if nested else 0)
