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

# With late interaction a document has some 700 vectors, so a hundred times fewer documents are as much work.
_DOCUMENTS = {"cosine": 100_000, "dot": 100_000, "maxsim": 1_000}


@dataclass(frozen=True)
class QueryLatencyOptions:
    """How long a query takes: to encode, and to search documents of random vectors in the study's form.

    Attributes:
        documents: in the collection; ``None`` is 100,000, with late interaction 1,000.
        vectors: a document's, with late interaction; 729 is a page of ColPali's and ColQwen's size.
        results: that a search returns.
        warmup: queries before the measured ones.
        repeats: measured queries.
        engine: that searches: all documents exactly, or a graph of FAISS or usearch, which is approximate.
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
        """Return the work of encoding; searching is little beside it."""
        return Cost(prefill_tokens=32 * (self.warmup + self.repeats))


def collection_size(options: QueryLatencyOptions, similarity: str) -> int:
    """Return how many documents are searched."""
    return _DOCUMENTS[similarity] if options.documents is None else options.documents
