"""Run one mteb task on one embedder, cut to the limit of queries, and keep the results of each query."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.cache import ResultCache
from mteb.types import PromptType

from llmquant.errors import LlmquantError, RunError, first_line
from llmquant.evaluators.hub_data import no_progress_bars, not_fetched
from llmquant.evaluators.mteb.as_mteb import MtebModel, as_mteb
from llmquant.evaluators.mteb.failures import write_failures
from llmquant.evaluators.mteb.items import Rows
from llmquant.evaluators.mteb.results import Place, Scored, results
from llmquant.plugins.context import Context
from llmquant.retrieval.index import Engine
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

_FOLDER = "mteb"


@no_progress_bars()
def evaluate_task(task: AbsTask, subject: LoadedEmbedder, ctx: Context, *, engine: Engine = "exact") -> list[Result]:
    """Run a task, and keep mteb's own result file with the run.

    The limit on documents applies to the queries of each subset of a retrieval task, never to the searched documents.

    Raises:
        RunError: if the task's data is unavailable, or none of it can be encoded.
    """
    _load(task)
    cut = _cut(task, ctx.documents.limit) if isinstance(task, AbsTaskRetrieval) else None
    model = as_mteb(subject, queries=cut, engine=engine, progress=ctx.progress)
    scored = _keep_scores(task) if isinstance(task, AbsTaskRetrieval) else {}
    cache = ResultCache(ctx.files / _FOLDER)
    (result,) = mteb.evaluate(
        model, task, cache=cache, overwrite_strategy="always", co2_tracker=False, show_progress_bar=False
    ).task_results
    file = cache.get_task_result_path(task.metadata.name, model.mteb_model_meta)
    details: dict[str, Json] = {
        "mteb": result.mteb_version,
        "mteb_model": model.mteb_model_meta.name,
        "result_file": file.relative_to(ctx.files).as_posix(),
        "type": task.metadata.type,
        "dataset_revision": result.dataset_revision,
        "subsets": list(dict.fromkeys(entry["hf_subset"] for entries in result.scores.values() for entry in entries)),
        "splits": list(result.scores),
        **_omitted(task, model, cut, ctx.documents.limit),
    }
    if scored:
        corpus = functools.partial(_corpus, task)
        details["failures"] = write_failures(result.task_name, task.metadata.main_score, scored, corpus, ctx.files)
    found = list(results(result, task.metadata.main_score, scored, _sizes(task, model), details))
    task.unload_data()
    return found


def fetch_task(task: AbsTask) -> None:
    """Fetch a task's data into the local cache.

    Raises:
        RunError: if the data is unavailable.
    """
    with no_progress_bars():
        _load(task)
    task.unload_data()


def searched(task: AbsTaskRetrieval, limit: int | None) -> Iterator[tuple[Place, Rows, Rows]]:
    """Load a task, cut to its first queries, and yield each subset's place, documents and queries.

    Raises:
        RunError: if the task's data is unavailable.
    """
    with no_progress_bars():
        _load(task)
        _cut(task, limit)
    for place in _places(task):
        yield place, _corpus(task, place), Rows(_data(task, place)["queries"], task.metadata, PromptType.query)


def _load(task: AbsTask) -> None:
    try:
        task.load_data()
    except LlmquantError:
        raise
    except Exception as error:  # a task's own code, and what fetches its rows, may raise anything
        reason = first_line(error)
        if not_fetched(error):
            raise RunError(
                f"the data of task {task.metadata.name!r} could not be fetched: {reason}",
                hint="Set HF_TOKEN if the data set is gated.",
            ) from error
        raise RunError(f"task {task.metadata.name!r} could not be loaded: {type(error).__name__}: {reason}") from error


def _cut(task: AbsTaskRetrieval, limit: int | None) -> int | None:
    """Keep the first queries with an answer of each subset; return the limit if it removed any query."""
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    shortened = False
    for place in _places(task):
        data = _data(task, place)
        relevant = data["relevant_docs"]
        answerable = [number for number, query in enumerate(data["queries"]["id"]) if relevant.get(query)]
        if limit is not None and len(answerable) > limit:
            data["queries"] = data["queries"].select(answerable[:limit])
            data["relevant_docs"] = {query: relevant[query] for query in data["queries"]["id"]}
            shortened = True
    return limit if shortened else None


def _keep_scores(task: AbsTaskRetrieval) -> dict[Place, Scored]:
    """Record this task's scores of single queries while mteb runs it."""
    kept: dict[Place, Scored] = {}
    own = task.task_specific_scores

    def keep(
        scores: Mapping[str, Mapping[str, float]],
        qrels: Mapping[str, Mapping[str, int]],
        found: Mapping[str, Mapping[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> Any:  # Any: mteb's own
        place = (hf_split, hf_subset)
        queries = Rows(_data(task, place)["queries"], task.metadata, PromptType.query)
        kept[place] = Scored(queries, scores, qrels, found)
        return own(scores, qrels, found, hf_split=hf_split, hf_subset=hf_subset)

    task.task_specific_scores = keep
    return kept


def _sizes(task: AbsTask, model: MtebModel) -> list[Measurement]:
    name, found = task.metadata.name, []
    if model.indexed:
        mean = float(np.mean([indexed.bytes_per_document for indexed in model.indexed]))
        found.append(Measurement(name, "bytes_per_document", mean, unit="bytes", higher_is_better=False))
        if cut := float(np.mean([indexed.cut for indexed in model.indexed])):
            found.append(Measurement(name, "documents_cut", cut, higher_is_better=False, headline=False))
    for what, skipped in (
        ("documents", [reason for indexed in model.indexed for reason in indexed.skipped]),
        ("queries", [reason for indexed in model.indexed for reason in indexed.skipped_queries]),
        ("items", model.skipped),
    ):
        if skipped:  # a note shows the number; the details have the reasons
            metric = f"{what}_not_encoded"
            found.append(Measurement(name, metric, float(len(skipped)), higher_is_better=False, headline=False))
    return found


def _omitted(task: AbsTask, model: MtebModel, cut: int | None, limit: int | None) -> dict[str, Json]:
    """Describe what was omitted, and why."""
    details: dict[str, Json] = {"skipped": {}, "skipped_queries": {}, "limit": cut}
    if not isinstance(task, AbsTaskRetrieval):
        details["skipped"] = sorted(set(model.skipped))
        if limit is not None:
            details["limit"] = "not applied: mteb scores a task without search as a whole"
        return details
    details["documents"] = [indexed.documents for indexed in model.indexed]
    details["skipped"] = {name: reason for indexed in model.indexed for name, reason in indexed.skipped.items()}
    details["skipped_queries"] = {
        name: reason for indexed in model.indexed for name, reason in indexed.skipped_queries.items()
    }
    return details


def _corpus(task: AbsTaskRetrieval, place: Place) -> Rows:
    return Rows(_data(task, place)["corpus"], task.metadata, PromptType.document)


def _places(task: AbsTask) -> list[Place]:
    return [(split, subset) for split in task.eval_splits for subset in task.hf_subsets]


def _data(task: AbsTask, place: Place) -> Any:  # Any: mteb's data of one split
    split, subset = place
    found: Any = task.dataset  # Any: as above
    return found[subset][split] if subset in found else found[split]
