"""Options of the retrieval evaluator: somebody's own pages and queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmquant.errors import OptionError, RequestError, RequestErrors, UnsupportedError
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
            OptionError: if it is neither, or cannot be read.
        """
        if path.is_file():
            if path.suffix.lower() != ".pdf":
                raise OptionError(f"{path} is no PDF", hint="Give a PDF, or a folder of images, texts or PDFs.")
            found = InputFile.read(path)
            return cls(found.digest, found.name, found.path)
        return super().read(path)


@dataclass(frozen=True)
class LocalSetOptions:
    """Options of the retrieval evaluator.

    Attributes:
        pages: what is searched: a folder of page images, of ``.txt`` files or of PDFs, or one PDF.
        queries: JSONL, CSV or TSV with the columns ``query`` and ``relevant`` (names of page files, ``file.pdf#3``, or
            page numbers from 1 where all is one PDF), and if wanted ``relevance`` (grades) and ``id``.
        dpi: dots an inch at which PDFs are rendered.
        engine: that searches: all pages exactly, or a graph of FAISS or usearch, which is approximate.
        batch_tokens: that a batch may hold, padding included; ``None`` is 1,024 on a CPU and 16,384 on CUDA.
    """

    pages: Pages
    queries: InputFile
    dpi: int = 150
    engine: Literal["exact", "faiss", "usearch"] = "exact"
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse a resolution at which nothing can be read, or nothing fits."""
        require_positive(batch_tokens=1 if self.batch_tokens is None else self.batch_tokens)
        if not 20 <= self.dpi <= 1200:
            raise OptionError(f"retrieval: dpi must be between 20 and 1200, found {self.dpi}")

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse a set with mistakes, all of them at once; no image is decoded.

        Raises:
            OptionError: for a mistake in the pages or the queries.
            UnsupportedError: for page images on an embedder of texts alone.
            MissingDependencyError: for a PDF where pypdfium2 is not installed.
            RequestErrors: for several of these.
        """
        from llmquant.evaluators.page_set.pages import list_pages
        from llmquant.evaluators.page_set.queries import read_questions

        if self.pages.path is None or self.queries.path is None:  # a worker has no need to check again
            return
        found, errors = list_pages(self.pages.path, self.pages.name, self.dpi)
        if found.pages:
            errors += read_questions(self.queries.path, self.queries.name, found.names())[1]
            errors += _unsupported(found.kind, self.pages.name, model)
        if errors:
            raise errors[0] if len(errors) == 1 else RequestErrors(errors)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of encoding, roughly: 1,000 tokens a page."""
        from llmquant.evaluators.page_set.pages import list_pages

        if self.pages.path is None:
            return Cost(prefill_tokens=0)
        return Cost(prefill_tokens=1000 * len(list_pages(self.pages.path, self.pages.name, self.dpi)[0].pages))


def _unsupported(kind: str, name: str, model: ModelInfo) -> list[RequestError]:
    if model.embeds is None or {kind, "text"} <= set(model.embeds.modalities):
        return []
    modalities = " and ".join(model.embeds.modalities)
    return [UnsupportedError(f"retrieval: {name} holds {kind}s, and {model.source} encodes {modalities} alone")]


__all__ = ["LocalSetOptions", "Pages"]
