"""Options of the quantizers that GPTQModel runs: GPTQ, AWQ, and round-to-nearest in the same layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError, UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.plugins.evaluator import Cost
from llmquant.quantizers.calibration.options import (
    Calibrated,
    Calibration,
    check_calibration,
    check_calibration_values,
)
from llmquant.quantizers.fitting import WHOLE_ROW, check_group_size, check_linear_layers, check_multiples
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json
from llmquant.study.experiment import Documents

GroupSize = Literal[-1, 16, 32, 64, 128, 256, 512, 1024]
Dtype = Literal["auto", "float16", "bfloat16", "float32"]
_WORD_BITS = 32
_AWQ_OUTPUTS = 64
# Bytes of the shift tables that unpack three bits; other widths have two int32 per code of a word.
_SHIFTS_3_BIT = 144
# Group sizes of GPTQModel's 4-bit kernel for CPUs; with other sizes it fails, or silently drops the zero points.
CPU_GROUPS_4_BIT = (32, 64, 128)


@dataclass(frozen=True)
class GptqOptions(Calibrated):
    """GPTQ (Frantar et al., arXiv:2210.17323): rounds column by column and corrects the columns that follow.

    Attributes:
        bits: bits per weight, for example 4.
        group_size: number of inputs that share a scale and a zero point, for example 128; -1 is a whole row.
        desc_act: whether to quantize the columns with the largest activations first: slightly better quality, slower
            kernels.
        sym: whether the middle code is zero; otherwise each group has its own zero point.
        damp_percent: fraction of the mean diagonal that is added to the Hessian's diagonal, for example 0.05.
        act_group_aware: whether, without `desc_act`, columns are ordered as far as the groups allow, at no cost when
            the model runs; ``None`` means yes unless `desc_act` is on, as in GPTQModel.
        format: layout of the zero points: ``gptq`` is auto-gptq's layout, which every engine reads; ``gptq_v2`` keeps
            asymmetric zero points exact.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA and bfloat16 on a CPU.
        calibration: calibration text: ``c4``, ``wikitext2``, a text file, or texts.
        samples: number of calibration sequences, for example 128.
        sequence_length: tokens per calibration sequence, for example 2048.
        calibration_seed: seed that selects the sequences, for example 0.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group_size: GroupSize = 128
    desc_act: bool = False
    sym: bool = True
    damp_percent: float = 0.1
    act_group_aware: bool | None = None
    format: Literal["gptq", "gptq_v2"] = "gptq"
    dtype: Dtype = "auto"
    calibration: Calibration = "c4"
    samples: int = 128
    sequence_length: int = 2048
    calibration_seed: int = 0

    def __post_init__(self) -> None:
        check_calibration_values(self, "gptq")
        if not 0 < self.damp_percent < 1:
            raise OptionError(f"gptq: damp_percent must be between 0 and 1, found {self.damp_percent}")
        if self.desc_act and self.act_group_aware:
            raise OptionError("gptq: act_group_aware orders columns without desc_act; both are on", hint="Choose one.")

    def check(self, model: ModelInfo, device: str) -> None:
        _check("gptq", model, self.bits, self.group_size, device)
        check_calibration(self, model, "gptq")

    def serving(self) -> str | None:
        """Return what vLLM needs to load the checkpoint."""
        return "" if self.bits in (4, 8) else None

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        return _loaded_bytes(model, device, self.bits, self.group_size, self.dtype, group_index=True)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the cost of quantizing: each layer reads the sequences twice, and sums up their products."""
        return Cost(3 * self.samples * self.sequence_length)

    def requests(self) -> Mapping[str, Json]:
        return _requests("gptq", self.bits, self.group_size)


@dataclass(frozen=True)
class AwqOptions(Calibrated):
    """AWQ (Lin et al., arXiv:2306.00978): scales the inputs that matter most before rounding, 4 bits, GEMM layout.

    Attributes:
        group_size: number of inputs that share a scale and a zero point, for example 128; -1 is a whole row.
        zero_point: whether each group has its own zero point; otherwise the middle code is zero.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA and bfloat16 on a CPU.
        calibration: calibration text: ``c4``, ``wikitext2``, a text file, or texts.
        samples: number of calibration sequences, for example 128.
        sequence_length: tokens per calibration sequence, for example 512.
        calibration_seed: seed that selects the sequences, for example 0.
    """

    group_size: Literal[-1, 16, 32, 64, 128] = 128
    zero_point: bool = True
    dtype: Dtype = "auto"
    calibration: Calibration = "c4"
    samples: int = 128
    sequence_length: int = 512
    calibration_seed: int = 0

    def __post_init__(self) -> None:
        check_calibration_values(self, "awq")

    def check(self, model: ModelInfo, device: str) -> None:
        _check("awq", model, 4, self.group_size, device)
        check_calibration(self, model, "awq")
        search = "AWQ's search for the best clipping"
        check_multiples(model.linear_layers(), _AWQ_OUTPUTS, 1, search, "Use a gptq preset.")

    def serving(self) -> str:
        """Return what vLLM needs to load the checkpoint."""
        return ""

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        return _loaded_bytes(model, device, 4, self.group_size, self.dtype, group_index=False)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the cost of quantizing: each layer reads the sequences once per each of 20 scales, and twice more."""
        return Cost(22 * self.samples * self.sequence_length)

    def requests(self) -> Mapping[str, Json]:
        return _requests("awq", 4, self.group_size)


@dataclass(frozen=True)
class RoundToNearestOptions:
    """Round-to-nearest in GPTQ's layout, without calibration: the baseline for GPTQ and AWQ.

    Attributes:
        bits: bits per weight, for example 4.
        group_size: number of inputs that share a scale and a zero point, for example 128; -1 is a whole row.
        sym: whether the middle code is zero; otherwise each group has its own zero point.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA and bfloat16 on a CPU.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group_size: GroupSize = 128
    sym: bool = True
    dtype: Dtype = "auto"

    def check(self, model: ModelInfo, device: str) -> None:
        _check("round_to_nearest", model, self.bits, self.group_size, device)

    def serving(self) -> str | None:
        """Return what vLLM needs to load the checkpoint."""
        return "" if self.bits in (4, 8) else None

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        return _loaded_bytes(model, device, self.bits, self.group_size, self.dtype, group_index=True)

    def requests(self) -> Mapping[str, Json]:
        return _requests("gptq", self.bits, self.group_size)


def _check(name: str, model: ModelInfo, bits: int, group_size: int, device: str) -> None:
    experts = "which GPTQModel writes one by one, and transformers cannot load into its fused tensors"
    layers = check_linear_layers(model, device, name, experts=experts)
    check_group_size(model, layers, group_size)
    if device == "cpu" and bits == 4 and group_size not in CPU_GROUPS_4_BIT:
        raise UnsupportedError(
            f"{name}: GPTQModel's 4-bit kernel for CPUs supports groups of 32, 64 or 128, not {group_size}",
            hint="Use one of these group sizes, or a CUDA device.",
        )
    check_multiples(layers, _WORD_BITS, _WORD_BITS, f"the packed layout of {name}", "Use bnb_4bit_nf4.")


def _loaded_bytes(model: ModelInfo, device: str, bits: int, group_size: int, dtype: Dtype, *, group_index: bool) -> int:
    """Add up codes, scales, zero points and group indexes of the packed layers, and all unquantized weights.

    The kernels for CPUs hold more from the first forward pass on: the 4-bit kernel repacks the layer, with scales and
    offsets in bfloat16 twice, separate and interleaved, and a second index; the kernel for 2 and 8 bits keeps the index
    in int64 and the zero points unpacked.
    """
    layers = model.linear_layers()
    total = plain_bytes(model, 4 if dtype == "float32" else 2, quantized=layers)
    for layer in layers:
        rows, columns = layer.shape
        scales = rows * (1 if group_size == WHOLE_ROW else columns // group_size)
        index = 4 * columns if group_index else 0
        total += rows * columns * bits // 8
        if device == "cpu" and bits == 4:
            total += 8 * scales + 2 * index
        elif device == "cpu" and bits in (2, 8):
            total += scales * bits // 8 + (2 + -(-bits // 4)) * scales + 3 * index
        else:
            total += scales * bits // 8 + 2 * scales + index
        if group_index:
            total += _SHIFTS_3_BIT if bits == 3 else 2 * 4 * _WORD_BITS // bits
    return total


def _requests(method: str, bits: int, group_size: int) -> Mapping[str, Json]:
    return {"method": method, "bits": float(bits), "block_size": None if group_size == WHOLE_ROW else group_size}
