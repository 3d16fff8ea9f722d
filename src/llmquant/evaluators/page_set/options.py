"""Options of the retrieval evaluator: the user's own pages and queries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmquant.errors import OptionError, RequestError, UnsupportedError, raise_all
from llmquant.evaluators.mteb.options import KEPT
from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents, InputFile, InputFolder
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class Pages(InputFolder):
    """A folder of page images, of texts or of PDFs, or one PDF."""

    @classmethod
    def read(cls, path: Path) -> InputFolder:
        """Digest the files in the folder at `path`, or the PDF there.

        Raises:
            OptionError: if `path` is neither a folder nor a PDF, or cannot be read.
        """
        if path.is_file():
            if path.suffix.lower() != ".pdf":
                raise OptionError(f"{path} is not a PDF", hint="Use a PDF, or a folder of images, texts or PDFs.")
            found = InputFile.read(path)
            return cls(found.digest, found.name, found.path)
        return super().read(path)


@dataclass(frozen=True)
class LocalSetOptions:
    """Options of the retrieval evaluator.

    Attributes:
        pages: pages to search: a folder of page images, of ``.txt`` files or of PDFs, or one PDF, for example
            ``./scans``.
        queries: JSONL, CSV or TSV file with the columns ``query`` and ``relevant`` (names of page files,
            ``file.pdf#3``, or page numbers from 1 for a single PDF), and optionally ``relevance`` (grades) and ``id``.
        dpi: resolution at which PDFs are rendered, in dots per inch, for example 150.
        engine: search engine: ``exact`` scores all pages, the graphs of ``faiss`` and ``usearch`` are approximate.
        batch_tokens: maximum tokens per batch, padding included, for example 4096; ``None`` is 1,024 on a CPU and
            16,384 on CUDA.
    """

    pages: Pages
    queries: InputFile
    dpi: int = 150
    engine: Literal["exact", "faiss", "usearch"] = "exact"
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse a resolution that is too low to read, or too high to fit."""
        require_positive(batch_tokens=self.batch_tokens)
        if not 20 <= self.dpi <= 1200:
            raise OptionError(f"retrieval: dpi must be between 20 and 1200, found {self.dpi}")

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse a set with mistakes and report all of them at once, without decoding images.

        Raises:
            OptionError: for a mistake in the pages or the queries.
            UnsupportedError: for page images with a text embedder.
            MissingDependencyError: for a PDF without pypdfium2.
            RequestErrors: for several of these errors.
        """
        from llmquant.evaluators.page_set.pages import list_pages
        from llmquant.evaluators.page_set.queries import read_questions

        if self.pages.path is None or self.queries.path is None:  # a worker need not check again
            return
        found, errors = list_pages(self.pages.path, self.pages.name, self.dpi)
        if found.pages:
            errors += read_questions(self.queries.path, self.queries.name, found.names())[1]
            errors += unsupported(found.kind, self.pages.name, model)
        raise_all(errors)

    def metrics(self) -> Collection[str]:
        """Return the metrics that queries have."""
        return KEPT

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Estimate the work of encoding: about 1,000 tokens per page."""
        from llmquant.evaluators.page_set.pages import list_pages

        if self.pages.path is None:
            return Cost(prefill_tokens=0)
        return Cost(prefill_tokens=1000 * len(list_pages(self.pages.path, self.pages.name, self.dpi)[0].pages))


def unsupported(kind: str, name: str, model: ModelInfo) -> list[RequestError]:
    """Return an error if the embedder does not encode documents of this kind, or no texts, which queries are."""
    if model.embeds is None or {kind, "text"} <= set(model.embeds.modalities):
        return []
    modalities = " and ".join(model.embeds.modalities)
    return [UnsupportedError(f"{name} holds {kind}s, but {model.source} encodes only {modalities}")]
