"""Turn mteb's scores into measurements and samples: mteb's own values, and the results of each query."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from mteb._evaluators.retrieval_metrics import mrr
from mteb.results import TaskResult

from llmquant.evaluators.mteb.items import Rows
from llmquant.evaluators.mteb.options import KEPT
from llmquant.study.call import Json
from llmquant.study.experiment import hex_digest
from llmquant.study.run import Measurement, Result, Sample, numbered

Entry: TypeAlias = Mapping[str, Any]  # Any: mteb's scores of one subset, with its name and languages
Place: TypeAlias = tuple[str, str]
"""A split and a subset."""

_AT_K = re.compile(r"(ndcg|map|recall|precision|mrr|hit_rate)_at_(\d+)")
# pytrec_eval's names of these metrics for a single query.
_SINGLE = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
_ANSWERS = 5


@dataclass(frozen=True)
class Scored:
    """mteb's scores of one subset's queries, before means are taken.

    Attributes:
        queries: the encoded queries.
        scores: pytrec_eval's scores, by query and metric.
        relevant: grades by query and document.
        found: scores of found documents, by query and document.
    """

    queries: Rows
    scores: Mapping[str, Mapping[str, float]]
    relevant: Mapping[str, Mapping[str, int]]
    found: Mapping[str, Mapping[str, float]]

    def metric(self, name: str) -> dict[str, float] | None:
        """Return a metric by query; ``None`` for a metric without values for single queries."""
        name = "recall_at_1" if name == "accuracy" else name
        match = _AT_K.fullmatch(name)
        if match is None:
            return None
        kind, k = match.groups()
        if kind == "mrr":
            ((_, values),) = mrr(dict(self.relevant), self.found, [int(k)]).items()
            return dict(zip(self.found, values, strict=True))
        key = f"{_SINGLE[kind]}_{k}"
        if any(key not in scores for scores in self.scores.values()):
            return None
        return {query: scores[key] for query, scores in self.scores.items()}

    def ranked(self, query: str) -> list[tuple[str, float]]:
        """Return the found documents, best first; equal scores are ordered by id, as in pytrec_eval."""
        return sorted(self.found[query].items(), key=lambda item: (item[1], item[0]), reverse=True)


def results(
    result: TaskResult,
    main: str,
    scored: Mapping[Place, Scored],
    extra: Sequence[Measurement],
    details: Mapping[str, Json],
) -> Iterator[Result]:
    """Yield the task's result, its main metric first, and for several subsets one result per subset.

    A task's values are means over its subsets, as in mteb. In several subsets, queries with the same relevant documents
    form one group: translations of one question.

    Args:
        main: the task's main metric.
        scored: scores of a retrieval task; empty for all other tasks.
        extra: measurements to add to the task's own.
        details: details to keep with the task's result.
    """
    task, entries = result.task_name, _entries(result)
    metrics = [main, *(name for name in _metrics(entries, bool(scored)) if name != main)]
    samples = {place: _samples(place, found, main, several=len(scored) > 1) for place, found in scored.items()}
    everything = [sample for each in samples.values() for sample in each]
    measurements = []
    for name in metrics:
        value = float(np.mean([entry[name] for entry in entries.values()]))
        better = True if scored or name == main else None
        stderr, n = _stderr(list(samples.values()), name)
        shown = name == main
        measurements.append(Measurement(task, name, value, higher_is_better=better, stderr=stderr, n=n, headline=shown))
    # Over several subsets it is a mean of means.
    yield Result(task, (*measurements, *extra), everything, details, metrics if len(entries) > 1 else ())
    if len(entries) < 2:
        return
    for place, entry in entries.items():
        at = {
            key: value
            for key, value in zip(("split", "subset"), place, strict=True)
            if any(value not in other for other in entries)
        }
        own = [replace(sample, answer=None, target=None) for sample in samples.get(place, ())]
        stderr, n = _stderr([own], main)
        name = f"{task} [{' '.join(at.values())}]"
        # A subset has its own name, because a task's samples determine its intervals, and these are one subset's.
        value = float(entry["main_score"])
        one = Measurement(name, main, value, higher_is_better=True, stderr=stderr, n=n, at=at, headline=False)
        yield Result(name, (one,), own)


def _entries(result: TaskResult) -> dict[Place, Entry]:
    return {(split, entry["hf_subset"]): entry for split, entries in result.scores.items() for entry in entries}


def _metrics(entries: Mapping[Place, Entry], searched: bool) -> list[str]:
    """Name the metrics that every subset has; for retrieval only metrics at k, for other tasks all metrics."""
    first, *others = entries.values()
    return [
        name
        for name, value in first.items()
        if _is_number(value)
        and name != "main_score"
        and (not searched or _AT_K.fullmatch(name))
        and all(_is_number(entry.get(name)) for entry in others)
    ]


def _samples(place: Place, scored: Scored, main: str, *, several: bool) -> list[Sample]:
    by_metric = {name: found for name in dict.fromkeys((main, *KEPT)) if (found := scored.metric(name)) is not None}
    samples = []
    for number, query in enumerate(scored.queries.ids):
        if query not in scored.scores:
            continue
        key, relevant = scored.queries[number].key.hex(), scored.relevant[query]
        best = scored.ranked(query)[:_ANSWERS]
        samples.append(
            Sample(
                hex_digest([*place, query, key]),
                key,
                {name: float(found[query]) for name, found in by_metric.items()},
                json.dumps(best),
                json.dumps({document: grade for document, grade in relevant.items() if grade > 0}),
                hex_digest(dict(relevant)) if several else "",
            )
        )
    return numbered(samples)


def _stderr(subsets: Sequence[Sequence[Sample]], metric: str) -> tuple[float | None, int | None]:
    """Return the standard error of the mean over subsets of their means over queries, and the number of queries.

    With ``S`` subsets of ``n_s`` queries, a query has the weight ``w = 1 / (S n_s)``. With residuals ``e`` from the
    subset's mean and ``C`` groups, the error is ``sqrt(C / (C - 1) * sum over groups of (sum of w e)^2)``: for one
    subset without groups ``sd / sqrt(n)``.
    """
    groups: dict[str, float] = defaultdict(float)
    n = 0
    for samples in subsets:
        if not samples or any(metric not in sample.scores for sample in samples):
            return None, n + len(samples) or None
        mean = math.fsum(sample.scores[metric] for sample in samples) / len(samples)
        for sample in samples:
            groups[sample.group or sample.document] += (sample.scores[metric] - mean) / (len(subsets) * len(samples))
        n += len(samples)
    count = len(groups)
    if count < 2:
        return None, n or None
    return math.sqrt(count / (count - 1) * math.fsum(value * value for value in groups.values())), n


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)  # also numpy's numbers
