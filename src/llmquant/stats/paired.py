"""Estimate how much a variant differs from its baseline on the same documents, and whether the difference is noise.

The kind of score determines the interval, because no single method keeps its 95% coverage for all kinds:

=================================  ======================================================================
fewer than six documents changed   exact bounds on how often one is better or worse (scores in [0, 1]);
                                   they always include zero, like every exact test of so few documents
0/1 scores                         Tango's score interval
other scores in [0, 1]             Student's t, its standard error widened by one unseen document that
                                   goes all the way from 0 to 1
anything else                      Student's t
a mean over tasks                  Student's t with Satterthwaite's degrees of freedom
=================================  ======================================================================

The unseen document accounts for quantization's typical damage: slightly reworded answers in many documents and broken
answers in a few. In a simulation at n = 50, with 27% of documents gaining 0.1 and 3% losing 0.9 (mean zero), plain t
finds an improvement in 21% of studies and the widened interval in 0.3%; if a third of the answers change at random, the
widened interval covers 97% instead of 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats: TypeAlias = NDArray[np.float64]
Method = Literal["score", "t", "exact bounds", ""]
Verdict = Literal["better", "worse", "differs", "equal", "no signal", "undecided"]

# For five changes, all in one direction, the two-sided sign test gives p = 0.06: no exact test can decide on so few.
MIN_CHANGED = 6
_UPPER = 0.975


@dataclass(frozen=True)
class PairedDifference:
    """Variant minus baseline over paired documents.

    Attributes:
        value: the mean difference.
        stderr: its standard error; ``None`` for a single document or group.
        low: lower end of the 95% interval; ``None`` without a meaningful interval.
        high: upper end of the 95% interval; ``None`` without a meaningful interval.
        n: number of pairs.
        higher: number of pairs in which the variant's score is higher.
        lower: number of pairs in which the variant's score is lower; all other pairs are tied.
        changed: number of pairs (or groups) that are not tied, on which the interval is based.
        method: method of the interval; ``""`` without an interval.
        units: number of pairs, or of groups if documents have groups.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    higher: int
    lower: int
    changed: int
    method: Method
    units: int


def paired_difference(
    variant: ArrayLike, baseline: ArrayLike, *, weights: ArrayLike | None = None, groups: Sequence[str] | None = None
) -> PairedDifference:
    """Estimate the mean difference of paired scores and its 95% interval.

    With totals ``v_i``, ``b_i`` and weights ``w_i`` of the ``n`` units, the difference is
    ``D = sum(v_i - b_i) / sum(w_i)`` and, from the residuals ``e_i = v_i - b_i - D w_i``, its standard error is
    ``sqrt(n / (n - 1) * sum(e_i^2)) / sum(w_i)``: for weights of 1 the familiar ``sd / sqrt(n)``.

    Args:
        variant: ``n`` finite scores.
        baseline: ``n`` finite scores of the same documents in the same order.
        weights: sizes for scores that are totals, such as the tokens of a window.
        groups: group per document, such as the story of a question; documents with the same group count as one unit,
            and ``""`` marks a document without a group.

    Raises:
        ValueError: if the lengths differ, nothing is paired, or a score is not finite.
    """
    v, b = np.asarray(variant, np.float64), np.asarray(baseline, np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, np.float64)
    if not v.size or v.shape != b.shape or v.shape != w.shape or (groups is not None and len(groups) != v.size):
        raise ValueError(f"scores do not pair: {v.shape} of the variant, {b.shape} of the baseline, {w.shape} weights")
    if not (np.isfinite(v).all() and np.isfinite(b).all() and np.isfinite(w).all() and w.sum() > 0):
        raise ValueError("a score or weight is not finite")
    d = v - b
    totals, sizes = (d, w) if groups is None else _by_group(d, w, groups)
    grouped = totals.size < d.size
    value = float(totals.sum() / sizes.sum())
    stderr = _stderr(totals, sizes, value)
    changed = int(np.count_nonzero(totals))
    higher, lower = int((d > 0).sum()), int((d < 0).sum())
    kind = _kind(np.concatenate([v, b])) if weights is None else "unbounded"
    low, high, method = _interval(totals, value, stderr, kind, grouped=grouped)
    return PairedDifference(value, stderr, low, high, d.size, higher, lower, changed, method, totals.size)


def mean_stderr(stderrs: Sequence[float | None]) -> float | None:
    """Compute the standard error of the mean of ``k`` independent values: ``sqrt(sum(se_i^2)) / k``.

    Returns:
        ``None`` if one of the standard errors is ``None``.
    """
    known = [stderr for stderr in stderrs if stderr is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(stderrs) else None


def mean_difference(differences: Sequence[PairedDifference]) -> PairedDifference:
    """Estimate the mean of the differences of ``k`` tasks with equal weights, and its 95% interval.

    The interval is Student's t on ``sqrt(sum(se_i^2)) / k`` with Satterthwaite's degrees of freedom,
    ``sum(se_i^2)^2 / sum(se_i^4 / (n_i - 1))`` for the ``n_i`` units of a task. The interval is about other documents
    of the same tasks. With fewer than six changed documents in total there is no interval, because no exact test could
    decide.

    Args:
        differences: at least one difference.
    """
    value = math.fsum(d.value for d in differences) / len(differences)
    stderr = mean_stderr([d.stderr for d in differences])
    counts = np.sum([(d.n, d.higher, d.lower, d.changed, d.units) for d in differences], axis=0)
    n, higher, lower, changed, units = map(int, counts)
    if stderr is None or changed < MIN_CHANGED:
        return PairedDifference(value, stderr, None, None, n, higher, lower, changed, "", units)
    variances = [(d.stderr or 0.0) ** 2 for d in differences]
    spread = math.fsum(s * s / (d.units - 1) for s, d in zip(variances, differences, strict=True))
    freedom = math.fsum(variances) ** 2 / spread if spread else math.inf
    reach = float(special.stdtrit(freedom, _UPPER)) * stderr if stderr else 0.0
    return PairedDifference(value, stderr, value - reach, value + reach, n, higher, lower, changed, "t", units)


def verdict(difference: PairedDifference, *, higher_is_better: bool | None) -> Verdict:
    """Return the verdict that a difference supports.

    Returns:
        ``equal`` if no document changed; ``better``, ``worse`` (or ``differs`` if neither direction is better) if the
        95% interval excludes zero; else ``undecided``.
    """
    if not difference.higher and not difference.lower:
        return "equal"
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    if higher_is_better is None:
        return "differs"
    return "better" if (low > 0) == higher_is_better else "worse"


def score_interval(higher: int, lower: int, n: int) -> tuple[float, float]:
    """Compute Tango's 95% score interval for a difference of paired proportions, ``(higher - lower) / n``.

    The interval holds the differences ``x`` with ``(h - l - n x)^2 <= z^2 n (2 q + x (1 - x))``, where ``q`` is the
    most likely share of ``lower`` pairs given ``x``: the larger root of ``2 n q^2 + B q - l x (1 - x) = 0``,
    ``B = (2 n - h + l) x - h - l``. T. Tango, Statistics in Medicine 17:891-908 (1998).

    Args:
        higher: pairs in which only the variant scores 1.
        lower: pairs in which only the baseline scores 1.
        n: number of all pairs, at least 1.
    """
    z2 = float(special.ndtri(_UPPER)) ** 2
    value = (higher - lower) / n

    def excess(x: float) -> float:
        linear = (2 * n - higher + lower) * x - higher - lower
        root = np.sqrt(max(linear * linear + 8 * n * lower * x * (1 - x), 0.0))
        q = (root - linear) / (4 * n)
        return float((higher - lower - n * x) ** 2 - z2 * n * (2 * q + x * (1 - x)))

    return _boundary(excess, value, -1.0), _boundary(excess, value, 1.0)


def _boundary(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Find by bisection where the excess turns from negative to positive."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if excess(middle) < 0:
            inside = middle
        else:
            outside = middle
    return outside


def _stderr(totals: Floats, sizes: Floats, value: float) -> float | None:
    n = totals.size
    if n < 2:
        return None
    residuals = totals - value * sizes
    return float(np.sqrt(n / (n - 1) * (residuals @ residuals)) / sizes.sum())


def _kind(scores: Floats) -> Literal["binary", "unit", "unbounded"]:
    if np.isin(scores, (0.0, 1.0)).all():
        return "binary"
    return "unit" if scores.min() >= 0 and scores.max() <= 1 else "unbounded"


def _interval(
    totals: Floats,
    value: float,
    stderr: float | None,
    kind: Literal["binary", "unit", "unbounded"],
    *,
    grouped: bool,
) -> tuple[float | None, float | None, Method]:
    n, higher, lower = totals.size, int((totals > 0).sum()), int((totals < 0).sum())
    if higher + lower < MIN_CHANGED:
        if grouped or kind == "unbounded":
            return None, None, ""
        # A mean difference of scores in [0, 1] is at most the share of improved documents.
        return -_upper_bound(lower, n), _upper_bound(higher, n), "exact bounds"
    if kind == "binary" and not grouped:
        return *score_interval(higher, lower, n), "score"
    if stderr is None:
        return None, None, ""
    # One document of difference 1 among n has the variance 1 / n of a single draw, 1 / n^2 of the mean.
    reach = float(special.stdtrit(n - 1, _UPPER)) * (stderr if kind == "unbounded" else math.hypot(stderr, 1 / n))
    return value - reach, value + reach, "t"


def _upper_bound(count: int, n: int) -> float:
    """Bound a proportion from above with 97.5% confidence (Clopper and Pearson)."""
    return 1.0 if count == n else float(special.betaincinv(count + 1, n - count, _UPPER))


def _by_group(totals: Floats, sizes: Floats, groups: Sequence[str]) -> tuple[Floats, Floats]:
    units = [(group, 0 if group else place) for place, group in enumerate(groups)]
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    index = np.array([numbers[unit] for unit in units])
    return np.bincount(index, totals).astype(np.float64), np.bincount(index, sizes).astype(np.float64)
