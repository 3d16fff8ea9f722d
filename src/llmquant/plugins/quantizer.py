"""The contract of quantizers: how the weights are represented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmquant.plugins.context import Context

if TYPE_CHECKING:
    import torch

    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class AppliedQuantization:
    """What is really in the weights, read back from the loaded modules.

    Attributes:
        method: ``none``, ``bitsandbytes``, ``gptq`` and so on.
        code: how a weight is coded: ``bfloat16``, ``int8``, ``nf4``, ``fp4``.
        bits: bits a weight, scales not counted.
        block_size: weights that share a scale; ``None`` where a row does or nothing is shared.
        double_quantization: whether the scales are quantized too.
        compute_dtype: in which the quantized layers multiply.
        dtypes: stored elements by storage dtype, as `llmquant.loading.memory.stored_elements` counts them.
        layers_quantized: how many layers hold quantized weights.
        layers_left: names of linear layers left as they were.
        note: anything a reader of the table must know.
    """

    method: str
    code: str
    bits: float
    block_size: int | None
    double_quantization: bool
    compute_dtype: str
    dtypes: Mapping[str, int]
    layers_quantized: int
    layers_left: tuple[str, ...] = ()
    note: str = ""


class Quantizer(Protocol):
    """How the weights are represented. Constructed with its options, on the worker.

    The options (the light half) may define ``check(model, device)``, which raises `RequestError`;
    ``weight_bytes(model, device) -> int``: what the loaded weights will hold; ``requests() -> Mapping[str, Json]``: the
    fields of `AppliedQuantization` that must come out as asked; ``texts() -> Iterable[str]``: the calibration text
    that is at hand, to warn where it is evaluated on; ``cost(model, documents) -> Cost`` of making a checkpoint;
    ``check_save(device)``, which raises `RequestError` if what is loaded cannot be written as a checkpoint; and
    ``row_independent() -> bool``, where the spec says ``False``: whether it is true of these options.
    The heavy half may define ``after_load(module, *, to_save)``: what has to be done to the loaded modules before their
    first use, or before they are only saved.
    """

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Write a quantized checkpoint to `out`, an empty folder, and return it; its spec says ``checkpoint=True``.

        Methods that quantize on loading return `model`.
        """
        ...

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> Mapping[str, Any]:  # Any: from_pretrained's keywords
        """Return keywords for ``from_pretrained``: ``dtype``, ``quantization_config``."""
        ...

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back what is really in the weights."""
        ...
