"""The contract of evaluators: what they are given, and what they yield."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from llmquant.plugins.context import Context
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.study.job import Device
from llmquant.study.run import Result

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmquant.models.info import ModelInfo
    from llmquant.study.experiment import Documents

Options = TypeVar("Options")


@dataclass(frozen=True)
class LoadStats:
    """What loading cost; only the loader can know it.

    Attributes:
        seconds: wall time from the files to a model on its device.
        peak_bytes: the most memory that loading took on the device, above what the process had before;
            ``None`` where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on its device, ready to be measured.

    Attributes:
        module: in evaluation mode.
        path: the folder its weights came from.
        load: what loading cost.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    applied: AppliedQuantization
    path: Path
    device: Device
    load: LoadStats


@dataclass(frozen=True)
class Cost:
    """About how much work an experiment is, to say before starting how long it will take.

    Attributes:
        prefill_tokens: tokens read.
        decode_tokens: tokens generated, one forward pass each (a batch counts once).
    """

    prefill_tokens: int
    decode_tokens: int = 0


class EvaluatorOptions:
    """The light half: options that check themselves. Every method is optional; a helper's name begins with ``_``."""

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse, before anything is loaded, what cannot work.

        Raises:
            RequestError: if so.
        """

    def parts(self) -> Sequence[Self] | None:
        """Return options of one experiment each, such as one per task; ``None`` for a single experiment."""
        return None

    def cost(self, model: ModelInfo, documents: Documents) -> Cost | None:
        """Return about how many tokens are read and generated."""
        return None

    def texts(self) -> Iterable[str]:
        """Return the evaluated text that is at hand, to warn where a quantizer was calibrated on it."""
        return ()


class Evaluator(Generic[Options]):
    """Measures a loaded variant. Constructed with its options, on the worker."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def evaluate(self, subject: Any, ctx: Context) -> Iterable[Result]:
        """Yield one result per task.

        Args:
            subject: a `LoadedModel` or a `LoadedEmbedder`, whichever the spec ``accepts``.
        """
        raise NotImplementedError
