"""Options of the query-latency evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# With late interaction a document has about 700 vectors, so a hundredth of the documents is a similar amount of work.
_DOCUMENTS = {"cosine": 100_000, "dot": 100_000, "maxsim": 1_000}


@dataclass(frozen=True)
class QueryLatencyOptions:
    """The time to encode a query, and the time to search documents of random vectors in the study's vector form.

    Attributes:
        documents: number of documents in the collection, for example 100000; ``None`` is 100,000, or 1,000 with late
            interaction.
        vectors: number of vectors per document with late interaction; 729 is a typical page of ColPali and ColQwen.
        results: number of results per search, for example 10.
        warmup: number of queries before the measured ones, for example 10.
        repeats: number of measured queries, for example 100.
        engine: search engine: ``exact`` scores all documents, the graphs of ``faiss`` and ``usearch`` are approximate.
    """

    documents: int | None = None
    vectors: int = 729
    results: int = 10
    warmup: int = 2
    repeats: int = 20
    engine: Literal["exact", "faiss", "usearch"] = "exact"

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        require_positive(
            documents=1 if self.documents is None else self.documents,
            vectors=self.vectors,
            results=self.results,
            warmup=self.warmup,
            repeats=self.repeats,
        )

    def check(self, model: ModelInfo, device: Device) -> None:
        """Accept every embedder of texts."""

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of encoding; the work of searching is negligible."""
        return Cost(prefill_tokens=32 * (self.warmup + self.repeats))


def collection_size(options: QueryLatencyOptions, similarity: str) -> int:
    """Return the number of searched documents."""
    return _DOCUMENTS[similarity] if options.documents is None else options.documents
