"""Options of the mteb evaluator: the tasks and benchmarks, and their parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmquant.errors import OptionError, RequestError, UnsupportedError, collecting, raise_all
from llmquant.evaluators.speed.generation_limits import require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.catalogs.mteb import MtebIndex, MtebTask, Part
    from llmquant.models.info import ModelInfo


# Metrics kept per query, in addition to a task's main metric.
KEPT = ("ndcg_at_1", "ndcg_at_5", "ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "recall_at_100")


@dataclass(frozen=True)
class MtebOptions:
    """Options of the mteb evaluator.

    Attributes:
        tasks: names of mteb's tasks and benchmarks, for example ``NFCorpus`` or ``ViDoRe(v1)``.
        languages: languages as ISO 639-3 codes, for example ``eng`` or ``eng-Latn``; only subsets with one of them are
            used.
        subsets: subsets to use, by mteb's names, for example ``english``; by default all.
        splits: splits to use, for example ``test``; by default those that mteb reports.
        engine: search engine: ``exact`` scores all documents, the graphs of ``faiss`` and ``usearch`` are approximate.
        batch_tokens: maximum tokens per batch, padding included, for example 4096; ``None`` is 1,024 on a CPU and
            16,384 on CUDA. A batch that does not fit in memory is always halved.
    """

    tasks: tuple[str, ...]
    languages: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    engine: Literal["exact", "faiss", "usearch"] = "exact"
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse a call without a task."""
        require_positive(batch_tokens=self.batch_tokens)
        if not self.tasks:
            raise OptionError("mteb needs a task", hint="Write mteb(ViDoRe(v1)); see: llmquant tasks")

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse unknown tasks, and tasks that the embedder does not support, without importing mteb.

        Raises:
            UnknownNameError: for a task or benchmark that mteb does not have.
            OptionError: for a language, subset or split that a task does not have.
            UnsupportedError: for tasks that the embedder does not support, such as images with a text embedder.
            MissingDependencyError: if mteb is installed but cannot be imported.
            RequestErrors: for several of these errors.
        """
        index = self._index()
        errors: list[RequestError] = []
        for name, _, _ in selected(self, index):
            with collecting(errors):
                _check(index.tasks[name], model)
        raise_all(errors)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Estimate the work of encoding: about 1,000 tokens per page, 200 per text, 30 per query."""
        index = self._index()
        tokens = 0
        for name, _, _ in selected(self, index):
            task = index.tasks[name]
            asked = task.queries or 0
            asked = asked if documents.limit is None else min(documents.limit * max(1, len(task.subsets)), asked)
            tokens += 30 * asked + (1000 if "image" in task.modalities else 200) * (task.documents or task.samples or 0)
        return Cost(prefill_tokens=tokens)

    def hub_rows(self) -> Mapping[str, str]:
        """Return the tasks' data sets of the Hub, and the evaluator of one's own pages or texts."""
        index = self._index()
        tasks = [index.tasks[name] for name, _, _ in selected(self, index)]
        return {task.dataset: _instead(task) for task in tasks if task.dataset}

    def metrics(self) -> Collection[str] | None:
        """Return the metrics that queries have; ``None`` if a task has no queries."""
        tasks = [self._index().tasks[name] for name, _, _ in selected(self, self._index())]
        return {*KEPT, *(task.main_score for task in tasks)} if all(task.retrieval for task in tasks) else None

    def parts(self) -> Sequence[MtebOptions]:
        """Return one evaluator per task; a benchmark stands for its tasks.

        Raises:
            RequestError: as in `check`, but only for names.
        """
        return [
            replace(self, tasks=(task,), languages=(), subsets=subsets, splits=splits)
            for task, subsets, splits in selected(self, self._index())
        ]

    def _index(self) -> MtebIndex:
        from llmquant.catalogs.mteb import known_mteb
        from llmquant.storage.cache import Cache

        return known_mteb(Cache.default())


def selected(options: MtebOptions, index: MtebIndex) -> list[Part]:
    """Return the selected tasks, each with its selected subsets and splits; empty for all.

    Raises:
        RequestError: as in `check`, but only for names.
    """
    errors: list[RequestError] = []
    expanded, found = [], []
    for name in options.tasks:
        with collecting(errors):
            expanded += index.expand(name)
    for part in dict.fromkeys(expanded):
        with collecting(errors):
            found.append(index.select(part, options.languages, options.subsets, options.splits))
    raise_all(errors)
    return found


def _instead(task: MtebTask) -> str:
    if not task.retrieval:
        return ""
    return "retrieval(PAGES, queries=FILE.jsonl)" if "image" in task.modalities else "beir(FOLDER)"


def _check(task: MtebTask, model: ModelInfo) -> None:
    if model.embeds is None:  # not an embedder, which the planner reports
        return
    lacking = [modality for modality in task.modalities if modality not in model.embeds.modalities]
    if lacking:
        raise UnsupportedError(
            f"mteb: task {task.name!r} holds {' and '.join(task.modalities)}, but {model.source} does not encode "
            f"{' or '.join(lacking)}",
            hint="For a text embedder use a task of texts, for example mteb(NanoNFCorpusRetrieval), or beir(FOLDER)."
            if "image" in lacking
            else "",
        )
    if model.embeds.similarity == "maxsim" and not task.retrieval:
        raise UnsupportedError(
            f"mteb: task {task.name!r} ({task.type}) needs one vector per item, but {model.source} returns several",
            hint="Late interaction is for retrieval and reranking.",
        )
