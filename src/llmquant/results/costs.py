"""What a variant needs while it runs, from the rows of its measurements: peak memory and latency."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from llmquant.results.row import Row
from llmquant.study.experiment import RunId

RUNNING = "running_peak_bytes"
"""The weights and the largest peak that a pass adds to them, key-value cache included."""

SERVED = "served_peak_bytes"
"""The same with the weights' size where they are served, for variants that run dequantized here."""

PER_DOLLAR = "documents_per_dollar"
"""Documents that a dollar encodes at a given price of the machine."""

PER_DOLLAR_PAID = "documents_per_dollar_paid"
"""The same at what the run cost, with its share of starting and loading."""

_WEIGHTS = {RUNNING: "weights_bytes", SERVED: "weights_served_bytes"}
PASSES = ("prefill_peak_bytes", "decode_peak_bytes", "encode_query_peak_bytes", "encode_page_peak_bytes")
_LATENCIES = ("decode_ms_per_token", "query_encode_ms")


def running_rows(rows: Sequence[Row]) -> list[Row]:
    """Make rows of the peak memory per variant and memory evaluator, if every part of it was measured."""
    found = []
    values: dict[tuple[str, str], float] = {}
    for (model, _, key), mine in _by_evaluator(rows).items():
        passes = [row for row in mine if row.metric in PASSES and row.value is not None]
        measured = {row.metric for row in rows if row.evaluator_key == key and row.metric in PASSES}
        if len(passes) < max(1, len(measured)):
            continue
        last = passes[-1]
        for metric, part in _WEIGHTS.items():
            for weights in [row.value for row in mine if row.metric == part and row.value is not None]:
                value = weights + max(row.value or 0.0 for row in passes)
                if last.is_baseline:
                    values[model, key] = value
                base = None if last.is_baseline else values.get((model, key))
                row = replace(last, metric=metric, value=value, baseline_value=base, difference=None, ratio=None)
                found.append(row if not base else replace(row, difference=value - base, ratio=value / base))
    return found


def per_dollar_rows(rows: Sequence[Row], seconds: Mapping[RunId, float]) -> list[Row]:
    """Make a row per run of `indexing` that was paid and was not given a price: documents per dollar of its cost.

    The cost includes the run's share of starting and loading, so a long job encodes more per dollar.

    Args:
        seconds: how long each run took.
    """
    priced = {row.run_id for row in rows if row.metric == PER_DOLLAR}
    return [
        replace(
            row,
            metric=PER_DOLLAR_PAID,
            value=row.value * seconds[row.run_id] / row.dollars,
            unit="documents/dollar",
            baseline_value=None,
            difference=None,
            ratio=None,
        )
        for row in rows
        if row.metric == "documents_per_s" and row.value and row.dollars and row.run_id not in priced
    ]


def peak_memory(rows: Sequence[Row], everything: Sequence[Row]) -> float | None:
    """Return the peak bytes of a variant's rows, where it is served if it runs dequantized here.

    If there are several conditions, this is the largest peak.

    Args:
        everything: rows of all variants.

    Returns:
        ``None`` unless it was measured under every condition under which one of them was: a smaller batch needs less.
    """
    if _conditions(rows, _WEIGHTS) != _conditions(everything, _WEIGHTS):
        return None
    metric = SERVED if any(row.metric == SERVED for row in rows) else RUNNING
    return max((row.value for row in rows if row.metric == metric and row.value is not None), default=None)


def latency(rows: Sequence[Row], everything: Sequence[Row]) -> Row | None:
    """Return the row of a variant's latency, at its slowest conditions: decode per token, or an embedder's query.

    Args:
        everything: as in `peak_memory`, and ``None`` is returned in the same case.
    """
    for metric in _LATENCIES:
        if _conditions(rows, [metric]) != _conditions(everything, [metric]):
            return None
        found = [row for row in rows if row.metric == metric and row.value is not None]
        if found:
            return max(found, key=lambda row: row.value or 0.0)
    return None


def _conditions(rows: Sequence[Row], metrics: Collection[str]) -> set[object]:
    known = [row for row in rows if row.metric in metrics and row.value is not None]
    return {(row.evaluator_key, *sorted(row.at.items())) for row in known}


def _by_evaluator(rows: Sequence[Row]) -> Mapping[tuple[str, str, str], list[Row]]:
    """Group rows by model, variant and evaluator, those of baselines first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.is_baseline):
        found.setdefault((row.model_digest, row.variant, row.evaluator_key), []).append(row)
    return found
