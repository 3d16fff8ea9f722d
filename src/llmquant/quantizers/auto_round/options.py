"""Options of AutoRound, and the predicted size of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError
from llmquant.models.info import ModelInfo
from llmquant.quantizers.calibration.options import (
    Calibrated,
    Calibration,
    check_calibration,
    check_calibration_values,
)
from llmquant.quantizers.fitting import check_group_size, check_linear_layers, check_multiples
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

_WORD_BITS = 32
_SCALE_BYTES = 2


@dataclass(frozen=True)
class AutoRoundOptions(Calibrated):
    """AutoRound: rounding and clipping tuned by signed gradient descent (Cheng et al., arXiv:2309.05516).

    Codes are symmetric, because auto-round 0.16 fails to pack asymmetric ones.

    Attributes:
        bits: bits per weight, for example 4.
        group_size: number of inputs that share a scale, for example 128.
        iters: tuning steps per block; 200 is auto-round's usual recipe, 1000 its best.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA and bfloat16 on a CPU.
        calibration: calibration text: ``c4``, ``wikitext2``, a text file, or texts.
        samples: number of calibration sequences, for example 128.
        sequence_length: tokens per calibration sequence, for example 2048.
        calibration_seed: seed that selects the sequences, for example 0.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group_size: int = 128
    iters: int = 200
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    calibration: Calibration = "c4"
    samples: int = 128
    sequence_length: int = 2048
    calibration_seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("group_size", 1), ("iters", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"auto_round: {name} must be at least {least}, found {getattr(self, name)}")
        check_calibration_values(self, "auto_round")

    def check(self, model: ModelInfo, device: str) -> None:
        experts = "whose size after auto-round unfuses it is unknown"
        layers = check_linear_layers(model, device, "auto_round", experts=experts)
        check_group_size(model, layers, self.group_size)
        check_multiples(layers, _WORD_BITS, 1, "auto-round's packing", "Use bnb_4bit_nf4.")
        check_calibration(self, model, "auto_round")

    def serving(self) -> str | None:
        """Return what vLLM needs to load the checkpoint."""
        return "" if self.bits == 4 else None

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the loaded weights: codes, a scale and a packed zero point per group, and the rest."""
        layers = model.linear_layers()
        rest = plain_bytes(model, 4 if self.dtype == "float32" else 2, quantized=layers)
        weights = sum(layer.elements for layer in layers)
        groups = weights // self.group_size
        return rest + weights * self.bits // 8 + groups * _SCALE_BYTES + groups * self.bits // 8

    def requests(self) -> Mapping[str, Json]:
        return {
            "method": "auto-round",
            "code": f"int{self.bits}",
            "bits": float(self.bits),
            "block_size": self.group_size,
        }
