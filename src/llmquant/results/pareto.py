"""The Pareto front of quality, memory and latency, with the uncertainty of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmquant.results.costs import latency, peak_memory
from llmquant.results.pooled import common_unit
from llmquant.results.row import Row, by_model

_DRAWS = 10_000


@dataclass(frozen=True)
class ParetoPoint:
    """One variant of a model.

    Attributes:
        model: name of the model.
        variant: label of the variant.
        gain: difference to the baseline over all tasks, in `unit`; 0 for the baseline.
        stderr: standard error of the gain.
        unit: ``points`` or ``margins``.
        memory: peak bytes while running; ``None`` if it was not measured for every variant.
        latency: milliseconds per token or query; ``None`` if it was not measured for every variant.
        on_front: no other variant is at least as good in everything and better in something, by the estimates.
        probability: share of draws from the estimates' errors in which the variant is on the front.
    """

    model: str
    variant: str
    gain: float
    stderr: float
    unit: str
    memory: float | None
    latency: float | None
    on_front: bool
    probability: float


def pareto(rows: Sequence[Row], *, seed: int = 0) -> list[ParetoPoint]:
    """Place each variant that was compared; those without an interval over all tasks are left out.

    Memory and latency count if every placed variant has them. The gains are drawn from normal distributions with their
    standard errors, independently of each other; memory and latency are taken as measured.
    """
    return [point for mine in by_model(rows) for point in _of_model(mine, seed)]


def _of_model(rows: Sequence[Row], seed: int) -> list[ParetoPoint]:
    import numpy as np

    pooled = {row.variant: row for row in rows if row.pooled and row.difference_stderr is not None}
    baseline = next((row.variant for row in rows if row.is_baseline), None)
    if not pooled or baseline is None:
        return []
    labels = [baseline, *pooled]
    own = [[row for row in rows if row.variant == label] for label in labels]
    unit, factors = common_unit(list(pooled.values()))
    scales = np.array([1.0, *factors])
    gains = np.array([0.0, *(row.difference or 0.0 for row in pooled.values())]) * scales
    errors = np.array([0.0, *(row.difference_stderr or 0.0 for row in pooled.values())]) * scales
    memory = [peak_memory(each, rows) for each in own]
    speed = [None if (row := latency(each, rows)) is None else row.value for each in own]
    costs = [np.array(values, float) for values in (memory, speed) if None not in values]
    draws = np.random.default_rng(seed).normal(gains, errors, (_DRAWS, len(labels)))
    probability = _front(draws, costs).mean(axis=0)
    front = _front(gains[np.newaxis], costs)[0]
    shown = [values if None not in values else [None] * len(labels) for values in (memory, speed)]
    return [
        ParetoPoint(
            rows[0].model,
            label,
            float(gains[i]),
            float(errors[i]),
            unit,
            shown[0][i],
            shown[1][i],
            bool(front[i]),
            float(probability[i]),
        )
        for i, label in enumerate(labels)
    ]


def _front(gains: Any, costs: Sequence[Any]) -> Any:  # Any: numpy arrays, imported where they are needed
    """Return which variants (columns) are on the front in each draw (rows)."""
    import numpy as np

    mine, other = gains[:, :, np.newaxis], gains[:, np.newaxis, :]
    at_least, better = other >= mine, other > mine
    for cost in costs:
        at_least &= cost[np.newaxis, :] <= cost[:, np.newaxis]
        better |= cost[np.newaxis, :] < cost[:, np.newaxis]
    return ~(at_least & better).any(axis=2)
