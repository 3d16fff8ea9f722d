"""Options of the evaluator of BEIR folders."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmquant.errors import raise_all
from llmquant.evaluators.mteb.options import KEPT
from llmquant.evaluators.page_set.options import unsupported
from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents, InputFolder
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# English text in the usual tokenizers.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class BeirOptions:
    """Options of the evaluator of BEIR folders.

    Attributes:
        folder: a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/``, for example ``./scifact``.
        split: name of the file in ``qrels``, for example ``test``.
        engine: search engine: ``exact`` scores all documents, the graphs of ``faiss`` and ``usearch`` are approximate.
        batch_tokens: maximum tokens per batch, padding included, for example 4096; ``None`` is 1,024 on a CPU and
            16,384 on CUDA.
    """

    folder: InputFolder
    split: str = "test"
    engine: Literal["exact", "faiss", "usearch"] = "exact"
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        require_positive(batch_tokens=self.batch_tokens)

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse a folder with mistakes and report all of them at once.

        Raises:
            OptionError: for a mistake in the corpus, the queries or the judgements.
            UnsupportedError: for an embedder that does not encode texts.
            RequestErrors: for several of these errors.
        """
        from llmquant.evaluators.beir.files import mistakes

        if self.folder.path is None:  # a worker need not check again
            return
        errors = mistakes(self.folder.path, self.folder.digest, self.folder.name, self.split)
        raise_all([*errors, *unsupported("text", self.folder.name, model)])

    def metrics(self) -> Collection[str]:
        """Return the metrics that queries have."""
        return KEPT

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Estimate the work of encoding from the corpus' size."""
        if self.folder.path is None:
            return Cost(prefill_tokens=0)
        return Cost(prefill_tokens=(self.folder.path / "corpus.jsonl").stat().st_size // _BYTES_PER_TOKEN)
