"""The contract of evaluators: what they are given, and what they yield."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmquant.plugins.context import Context
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.study.job import Device
from llmquant.study.run import Result

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmquant.models.info import ModelInfo


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


class Evaluator(Protocol):
    """Measures a loaded variant. Constructed with its options, on the worker.

    The options (the light half) may define ``check(model, device)``, ``parts()`` (one experiment each),
    ``cost(model, documents) -> Cost``, and ``texts()`` as above.
    """

    def evaluate(self, subject: Any, ctx: Context) -> Iterable[Result]:
        """Yield a result a task.

        Args:
            subject: a `LoadedModel` or a `LoadedEmbedder`, whichever the spec ``accepts``.
        """
        ...
