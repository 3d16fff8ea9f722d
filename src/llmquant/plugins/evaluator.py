"""The contract of evaluators: their inputs and results."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """Time and memory of loading a model, measured by the loader.

    Attributes:
        seconds: wall time from the files to a model on its device.
        peak_bytes: peak memory of loading on the device, in addition to the memory used before; ``None`` if the
            system does not report it.
        changed: settings of the process that another package's plugin changed while loading; the worker restored them.
        before_bytes: memory of the process, or of tensors on GPUs, when loading began and its imports were done.
    """

    seconds: float
    peak_bytes: int | None
    changed: tuple[str, ...] = ()
    before_bytes: int = 0


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on its device, ready to be measured.

    Attributes:
        module: in evaluation mode.
        tokenizer: the model's own, equal for all variants.
        info: the model before it was loaded.
        applied: what the quantizer read back.
        path: folder of the loaded weights.
        device: where the module is.
        load: time and memory of loading.
        row_independent: documents in a batch do not change each other's results.
    """

    module: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    info: ModelInfo
    applied: AppliedQuantization
    path: Path
    device: Device
    load: LoadStats
    row_independent: bool = True

    def __repr__(self) -> str:
        return f"<LoadedModel {self.info.use().name}, {self.applied.method}, on {self.device}>"


@dataclass(frozen=True)
class Cost:
    """The approximate work of an experiment, to predict its time.

    Attributes:
        prefill_tokens: number of tokens read.
        decode_tokens: number of tokens generated, one forward pass per token (a batch counts once).
    """

    prefill_tokens: int
    decode_tokens: int = 0

    def __post_init__(self) -> None:
        for name, tokens in vars(self).items():
            if not (isinstance(tokens, numbers.Real) and 0 <= float(tokens) < math.inf):
                raise ValueError(f"Cost.{name} is {tokens!r}, not a number of tokens")


class EvaluatorOptions:
    """The light half: options that check themselves. Every method is optional; a helper's name begins with ``_``."""

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse an unsupported request before anything is loaded.

        Raises:
            RequestError: if the request is not supported.
        """

    def parts(self) -> Sequence[Self] | None:
        """Return options per experiment, for example one per task; ``None`` for a single experiment."""
        return None

    def cost(self, model: ModelInfo, documents: Documents) -> Cost | None:
        """Return the approximate number of tokens read and generated."""
        return None

    def cached_tokens(self) -> int | None:
        """Return the tokens in the key-value cache of the largest pass, of all its sequences together.

        A study whose weights and key-value cache exceed the memory is refused.
        """
        return None

    def whole(self) -> str:
        """Return why the evaluator cannot score slices of its documents (`Documents.slice`); ``""`` if it can."""
        return "it scores all documents at once"

    def metrics(self) -> Collection[str] | None:
        """Return the names of the scores that documents have, which margins may name; ``None`` if not known yet."""
        return None

    def texts(self) -> Iterable[str]:
        """Return the available evaluated text, to warn about quantizers calibrated on it."""
        return ()

    def hub_rows(self) -> Mapping[str, str]:
        """Return the needed data sets of the Hub, and what to write instead.

        Each is written ``repository:configuration:split:column``; all but the repository may be missing or empty.
        """
        return {}


class Evaluator(ABC, Generic[Options]):
    """Measures a loaded variant. Constructed with its options, on the worker."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def fetch(self, ctx: Context) -> None:
        """Fetch and check what `evaluate` reads, so that a mistake costs no loading of a model.

        Called before the model is loaded, for llmquant's own evaluators: importing the code of other packages might
        change how the model is loaded.
        """

    @abstractmethod
    def evaluate(self, subject: Any, ctx: Context) -> Iterable[Result]:
        """Yield one result per task.

        Args:
            subject: a `LoadedModel` or a `LoadedEmbedder`, whichever the spec ``accepts``.
        """
