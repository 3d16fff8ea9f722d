"""Options of the drift evaluator: the documents and queries on which variants are compared with the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.errors import OptionError, UnsupportedError
from llmquant.evaluators.beir.files import CORPUS
from llmquant.evaluators.beir.options import BeirOptions
from llmquant.evaluators.mteb.options import MtebOptions, selected
from llmquant.evaluators.page_set.options import LocalSetOptions, Pages
from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.study.experiment import InputFile
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class DriftOptions:
    """Options of the drift evaluator.

    Attributes:
        data: a retrieval task of mteb, for example ``NFCorpus``, pages as for the ``retrieval`` evaluator, or a folder
            as for the ``beir`` evaluator.
        queries: queries for pages, as for the ``retrieval`` evaluator, for example ``queries.jsonl``.
        results: number of results to compare per query, for example 10.
        vectors: number of documents, sampled by the seed, whose vectors are compared, for example 1000; the baseline's
            vectors of these documents are kept with its run.
        dpi: resolution at which PDFs are rendered, in dots per inch, for example 150.
    """

    data: Pages | str
    queries: InputFile | None = None
    results: int = 10
    vectors: int = 1000
    dpi: int = 150

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive, and queries for data that has its own."""
        require_positive(results=self.results, vectors=self.vectors)
        if isinstance(self.data, str) and self.queries is not None:
            raise OptionError(f"drift: {self.data!r} is neither a folder nor a PDF; other data does not take queries")

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse data that the evaluator of the same data refuses.

        Raises:
            RequestError: as in the options of that evaluator, and for a task that does not search.
        """
        if isinstance(self.data, Pages):
            path = self.data.path
            if self.queries is None and path is not None and not (path / CORPUS).is_file():
                raise OptionError("drift: pages need queries", hint="Write drift(./pages, queries=queries.jsonl).")
            self.local.check(model, device)
            return
        from llmquant.catalogs.mteb import known_mteb
        from llmquant.storage.cache import Cache

        mteb = MtebOptions((self.data,))
        mteb.check(model, device)
        index = known_mteb(Cache.default())
        for name, _, _ in selected(mteb, index):
            if not index.tasks[name].retrieval:
                raise UnsupportedError(f"drift: task {name!r} does not search", hint="Name a retrieval task.")

    def hub_rows(self) -> Mapping[str, str]:
        """Return the task's data set of the Hub, and what to write instead; nothing for local data."""
        if isinstance(self.data, Pages):
            return {}
        instead = "drift(PAGES, queries=FILE.jsonl) or drift(FOLDER)"
        return dict.fromkeys(MtebOptions((self.data,)).hub_rows(), instead)

    @property
    def local(self) -> LocalSetOptions | BeirOptions:
        """Return the options of the evaluator of the same folder.

        Raises:
            OptionError: if `data` is a task of mteb.
        """
        if not isinstance(self.data, Pages):
            raise OptionError(f"drift: {self.data} is a task of mteb")
        return BeirOptions(self.data) if self.queries is None else LocalSetOptions(self.data, self.queries, self.dpi)
