"""Options of the evaluator of indexing speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.errors import RequestError, raise_all, shorten
from llmquant.evaluators.beir.files import CORPUS, read_corpus
from llmquant.evaluators.page_set.options import Pages, unsupported
from llmquant.evaluators.page_set.pages import list_pages
from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# A batch of page images on CUDA has about 16 pages, of texts about 60.
DOCUMENTS: dict[Device, int] = {"cpu": 16, "mps": 64, "cuda": 256}


@dataclass(frozen=True)
class IndexingOptions:
    """Documents per second while a corpus is encoded.

    Attributes:
        data: the corpus: pages as for the ``retrieval`` evaluator, or a folder as for the ``beir`` evaluator, for
            example ``./scans``; ``None`` generates pages of A4 for embedders of images, and texts of 200 words for all
            others.
        documents: number of documents per pass, drawn by the seed, for example 100; ``None`` is 16 on a CPU and 256 on
            CUDA.
        dpi: resolution at which PDFs are rendered, in dots per inch, for example 150.
        batch_tokens: maximum tokens per batch, padding included, for example 4096; ``None`` is 1,024 on a CPU and
            16,384 on CUDA.
        dollars_per_hour: price of the machine, for example 1.95, for the number of documents per dollar.
        warmup: number of passes before the measured ones, for example 1.
        repeats: number of measured passes, for example 5.
        budget_s: seconds, for example 60; no repeat starts later, except the first three.
    """

    data: Pages | None = None
    documents: int | None = None
    dpi: int = 150
    batch_tokens: int | None = None
    dollars_per_hour: float | None = None
    warmup: int = 1
    repeats: int = 5
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        require_positive(**vars(self))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse documents with mistakes, and documents that the embedder does not encode.

        Raises:
            RequestError: as in the options of the evaluator of the same documents.
        """
        if self.data is None or self.data.path is None:  # a worker need not check again
            return
        errors: list[RequestError] = []
        if (self.data.path / CORPUS).is_file():
            read_corpus(self.data.path, self.data.name, errors, texts=False)
            shorten(errors, self.data.name)
            kind = "text"
        else:
            pages, errors = list_pages(self.data.path, self.data.name, self.dpi)
            kind = pages.kind if pages.pages else ""
        if kind:
            errors += unsupported(kind, self.data.name, model)
        raise_all(errors)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Estimate the work of all passes on a CPU: about 1,000 tokens per document."""
        return Cost(prefill_tokens=1000 * (self.documents or DOCUMENTS["cpu"]) * (self.warmup + self.repeats))
