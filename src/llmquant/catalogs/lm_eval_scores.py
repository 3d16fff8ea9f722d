"""Read lm-eval's numbers: the values of a task, and the scores of one document, in memory or in lm-eval's files."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from llmquant.catalogs.lm_eval_yaml import Function
from llmquant.study.run import Measurement

Entry: TypeAlias = Mapping[str, Any]  # Any: lm-eval's record of a document, one per filter

# Metrics that lm-eval computes over all documents at once, from log-likelihoods in nats, which are kept as "nll" with
# their divisor.
_LIKELIHOODS = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}
# lm-eval's metrics of a task that lists none, by its kind of output.
_METRICS = {
    "generate_until": ["exact_match"],
    "loglikelihood": ["perplexity", "acc"],
    "loglikelihood_rolling": list(_LIKELIHOODS),
    "multiple_choice": ["acc", "acc_norm"],
}
# lm-eval's aggregations that are a mean, or a ratio of sums.
MEANS = frozenset({"mean", "perplexity", "weighted_perplexity", "bits_per_byte", "brier_score"})


def measurements(
    task: str, values: Mapping[str, Any], higher: Mapping[str, bool]
) -> Iterator[Measurement]:  # Any: numbers
    """Yield a task's values, one per metric and filter.

    Args:
        values: lm-eval's values of the task, with keys such as ``acc,none`` and ``acc_stderr,none``.
        higher: whether higher is better, by metric.
    """
    counts = values.get("sample_count") or {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not is_number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{filter_name}")  # Any: a number, or "N/A"
        yield Measurement(
            task,
            named(metric, filter_name),
            float(value),
            higher_is_better=higher.get(metric),
            stderr=float(stderr) if is_number(stderr) else None,
            n=counts.get(key, values.get("sample_len")),
        )


def by_document(logged: Iterable[Entry]) -> list[list[Entry]]:
    """Combine the entries of a document: one per filter that read its answers."""
    documents: dict[int, list[Entry]] = {}
    for entry in logged:
        documents.setdefault(entry["doc_id"], []).append(entry)
    return list(documents.values())


def scores(metric: str, filter_name: str, value: Any, aggregation: str) -> dict[str, float]:  # Any: by metric
    """Reduce one document's value to numbers; none for values meaningful only together, such as labels for an MCC.

    Args:
        aggregation: name of lm-eval's function that makes the task's value; ``""`` if unknown.
    """
    if metric in _LIKELIHOODS and isinstance(value, tuple | list):
        log_likelihood, size = value
        return {"nll": -float(log_likelihood), _LIKELIHOODS[metric]: float(size)}
    if aggregation == "perplexity":
        return {"nll": -float(value)}
    return {named(metric, filter_name): float(value)} if is_number(value) else {}


def named(metric: str, filter_name: str) -> str:
    """Return a metric's name: ``acc``, or ``exact_match,strict-match`` behind a filter."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def metric_names(task: Mapping[str, Any]) -> set[str]:  # Any: YAML values
    """Return the names of a task's scores, one per metric and filter; empty for a task of Python code."""
    if "class" in task:
        return set()
    listed = [each["metric"] for each in task.get("metric_list") or ()]
    metrics = [each.name if isinstance(each, Function) else str(each) for each in listed]
    metrics = metrics or _METRICS.get(str(task.get("output_type", "generate_until")), [])
    filters = [str(each["name"]) for each in task.get("filter_list") or ()] or ["none"]
    return {named(metric, name) for metric in metrics for name in filters}


def is_number(value: object) -> bool:
    """Return whether a value is a number, also one of numpy's, or a bool."""
    return isinstance(value, numbers.Real)
