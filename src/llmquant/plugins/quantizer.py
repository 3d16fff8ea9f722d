"""The contract of quantizers: how the weights are represented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmquant.plugins.context import Context
from llmquant.study.call import Json

if TYPE_CHECKING:
    import torch

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.evaluator import Cost
    from llmquant.study.experiment import Documents

Options = TypeVar("Options")


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


class QuantizerOptions:
    """The light half: options that check themselves. Every method is optional; a helper's name begins with ``_``."""

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse, before anything is loaded, what cannot work.

        Raises:
            RequestError: if so.
        """

    def weight_bytes(self, model: ModelInfo, device: str) -> int | None:
        """Predict what the loaded weights will hold, in bytes; ``None`` predicts nothing."""
        return None

    def requests(self) -> Mapping[str, Json]:
        """Return the fields of `AppliedQuantization` that must be found in the loaded weights."""
        return {}

    def texts(self) -> Iterable[str]:
        """Return the calibration text that is at hand, to warn where the model is evaluated on it."""
        return ()

    def cost(self, model: ModelInfo, documents: Documents) -> Cost | None:
        """Return about how many tokens making a checkpoint takes."""
        return None

    def check_save(self, device: str) -> None:
        """Refuse to save what is loaded, if it cannot be written as a checkpoint.

        Raises:
            RequestError: if so.
        """

    def row_independent(self) -> bool:
        """Tell, where the spec says ``row_independent=False``, whether these options are an exception."""
        return False


class Quantizer(Generic[Options]):
    """How the weights are represented. Constructed with its options, on the worker."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Write a quantized checkpoint to `out`, an empty folder, and return it; its spec says ``checkpoint=True``.

        Without that, return the folder to load.
        """
        return model

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> Mapping[str, Any]:  # Any: from_pretrained's keywords
        """Return keywords for ``from_pretrained``: ``dtype``, ``quantization_config``."""
        raise NotImplementedError

    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        """Do what the loaded layers need before their first use, or before they are only saved."""

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back what is really in the weights."""
        raise NotImplementedError
