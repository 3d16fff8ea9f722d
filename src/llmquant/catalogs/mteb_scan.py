"""Write the installed mteb's tasks and benchmarks as JSON: ``python -m llmquant.catalogs.mteb_scan FILE``.

Importing mteb takes ten seconds and imports torch, so `llmquant.catalogs.mteb` runs this module once per version, in a
separate process. CONTRIBUTING.md describes the index that the package contains.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import lzma
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.get_tasks import TASK_LIST
from mteb.models import ModelMeta
from mteb.types import PromptType

from llmquant.study.call import Json


def scan() -> Json:
    """Describe every task, and list the tasks of every benchmark.

    Tasks that are the mean of other tasks are listed as benchmarks.
    """
    aggregates = [cls for cls in TASK_LIST if AbsTaskAggregate in cls.__mro__]
    return {
        "version": importlib.metadata.version("mteb"),
        "tasks": {cls.metadata.name: _task(cls) for cls in TASK_LIST if cls not in aggregates},
        "benchmarks": {
            **{cls.metadata.name: [_part(task) for task in cls.metadata.tasks] for cls in aggregates},
            **{name: [_part(task) for task in tasks] for name, tasks in _benchmarks()},
        },
        "models": {meta.name: _model(meta) for meta in mteb.get_model_metas() if _can_embed(meta)},
    }


def _benchmarks() -> Iterator[tuple[str, list[AbsTask]]]:
    for benchmark in mteb.get_benchmarks():
        for name in (benchmark.name, *benchmark.aliases):
            yield name, list(benchmark.tasks)


def _can_embed(meta: ModelMeta) -> bool:
    """Return whether mteb can load a model with one vector per item, from public weights."""
    return meta.loader is not None and meta.embed_dim is not None and meta.open_weights and meta.model_type == ["dense"]


def _model(meta: ModelMeta) -> Json:
    dims = meta.embed_dim if isinstance(meta.embed_dim, Sequence) else [meta.embed_dim]
    compared = meta.similarity_fn_name.value if meta.similarity_fn_name else "cosine"
    return {"dims": sorted(dims, reverse=True), "modalities": list(map(str, meta.modalities)), "similarity": compared}


def _task(cls: type[AbsTask]) -> Json:
    metadata = cls.metadata
    # Not issubclass: for an abstract class it checks all two thousand subclasses, which takes 12 s in total.
    retrieval = AbsTaskRetrieval in cls.__mro__
    sides = (PromptType.query, PromptType.document) if retrieval else (None,)
    found = [modality for side in sides for modality in metadata.get_modalities(side)]
    subsets: dict[str, Json] = {name: " ".join(langs) for name, langs in metadata.hf_subsets_to_langscripts.items()}
    return {
        "type": metadata.type,
        "retrieval": retrieval,
        "category": metadata.category or "",
        "modalities": list(dict.fromkeys(map(str, found))),
        "main_score": metadata.main_score,
        "subsets": subsets,
        "splits": list(metadata.eval_splits),
        "public": metadata.is_public,
        "superseded_by": metadata.superseded_by or "",
        "dataset": metadata.dataset["path"] if _reads_it(cls) else "",
        **_sizes(metadata.descriptive_stats or {}, metadata.eval_splits),
    }


def _reads_it(cls: type[AbsTask]) -> bool:
    """Return whether a task reads the data set that its metadata names."""
    return cls.load_data in (AbsTask.load_data, AbsTaskRetrieval.load_data) or "dataset" in inspect.getsource(
        cls.load_data
    )


def _sizes(statistics: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Json]:  # Any: mteb's statistics
    """Read mteb's counts: all queries, and the documents of the largest subset, because subsets often share them."""
    queries = documents = samples = 0
    for split in splits:
        found = statistics.get(split) or {}
        subsets = list((found.get("hf_subset_descriptive_stats") or {"": found}).values())
        counts = [_counts(subset, len(subsets)) for subset in subsets]
        queries += sum(count[0] for count in counts)
        documents = max([documents, *(count[1] for count in counts)])
        samples += found.get("num_samples") or 0
    return {"queries": queries or None, "documents": documents or None, "samples": samples or None}


def _counts(found: Mapping[str, Any], subsets: int) -> tuple[int, int]:  # Any: mteb's statistics
    """Return the queries and documents of one subset.

    Older statistics have only the sum of both, their numbers of unique items, and the judgements, sometimes for all
    subsets together.
    """
    if "num_queries" in found:
        return found["num_queries"], found["num_documents"]
    total, relevant = found.get("num_samples") or 0, found.get("relevant_docs_statistics") or {}
    if not relevant:
        return 0, 0
    judged = round(relevant["num_relevant_docs"] / relevant["average_relevant_docs_per_query"])
    least, most = _different(found, "queries"), total - _different(found, "documents")
    queries = next((count for count in (judged, judged // subsets) if least <= count <= most), most)
    return queries, total - queries


def _different(found: Mapping[str, Any], side: str) -> int:  # Any: mteb's statistics
    counts = [found.get(f"{side}_{kind}_statistics") or {} for kind in ("text", "image", "audio", "video")]
    return max(next((value for key, value in count.items() if key.startswith("unique")), 0) for count in counts)


def _part(task: AbsTask) -> Json:
    """Name a benchmark's task, with its selected subsets and splits; empty lists for all of them."""
    metadata = task.metadata
    subsets, splits = list(task.hf_subsets), list(task.eval_splits)
    return [
        metadata.name,
        [] if subsets == metadata.hf_subsets else subsets,
        [] if splits == list(metadata.eval_splits) else splits,
    ]


if __name__ == "__main__":
    file, index = Path(sys.argv[1]), json.dumps(scan()).encode()
    file.write_bytes(lzma.compress(index, preset=9) if file.suffix == ".xz" else index)
