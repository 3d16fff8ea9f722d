"""Estimate how much a variant differs from its baseline on the same documents, and whether the difference is noise.

The kind of score determines the interval, because no single method keeps its 95% coverage for all kinds:

=================================  ======================================================================
0/1 scores                         Tango's score interval, together with Bonett and Price's where answers
                                   change mostly in one direction; it excludes zero if McNemar's mid-p is
                                   below 5% and at least six answers changed
other scores in [0, 1], of which   exact bounds on how often one is better or worse; they always include
fewer than six changed             zero, like every exact test of so few documents
other scores in [0, 1]             Student's t, allowing for skewed scores and for unseen documents
anything else                      Student's t
windows of one text, in order      Student's t, with the autocorrelation of neighbours
a mean over tasks                  Student's t with Satterthwaite's degrees of freedom
=================================  ======================================================================

Quantization's typical damage is slightly reworded answers in many documents and broken answers in a few. Plain t is
misled twice: if the sample has no broken answer, it takes them to be impossible, and if it has a few, their number and
the standard error are both too small at once. `benchmarks/coverage.py` shows how often each interval errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from llmquant.stats.proportions import adjusted_interval, score_interval, upper_bound
from llmquant.stats.significance import mcnemar_exact, mcnemar_mid_p

Floats: TypeAlias = NDArray[np.float64]
Method = Literal["score", "t", "exact bounds", "betting sequence", ""]

# For five changes, all in one direction, the two-sided sign test gives p = 0.06: no exact test can decide on so few.
MIN_CHANGED = 6
# The variance of a series that hardly forgets cannot be estimated from it.
_MAX_AUTOCORRELATION = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Variant minus baseline over paired documents.

    Attributes:
        value: the mean difference.
        stderr: its standard error; ``None`` for a single document or group.
        low: lower end of the interval; ``None`` without a meaningful interval.
        high: upper end of the interval; ``None`` without a meaningful interval.
        n: number of pairs.
        higher: number of pairs in which the variant's score is higher.
        lower: number of pairs in which the variant's score is lower; all other pairs are tied.
        changed: number of pairs (or groups) that are not tied, on which the interval is based.
        method: method of the interval; ``""`` without an interval.
        units: number of pairs, or of groups if documents have groups.
        p: two-sided p-value of no difference, by the method of the interval: McNemar's mid-p for 0/1 scores, the exact
            sign test for exact bounds, Student's t for t; ``None`` without an interval.
        skewness: skewness of the differences over ``sqrt(n)``, for scores in [0, 1]; else 0.
        largest: the largest possible change of a document: 1 for scores in [0, 1], 0 if there is none.
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
    p: float | None
    skewness: float = 0.0
    largest: float = 0.0


def paired_difference(
    variant: ArrayLike,
    baseline: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    ordered: bool = False,
) -> PairedDifference:
    """Estimate the mean difference of paired scores and its interval.

    With totals ``v_i``, ``b_i`` and weights ``w_i`` of the ``n`` units, the difference is
    ``D = sum(v_i - b_i) / sum(w_i)`` and, from the residuals ``e_i = v_i - b_i - D w_i``, its standard error is
    ``sqrt(n / (n - 1) * sum(e_i^2)) / sum(w_i)``: for weights of 1 the familiar ``sd / sqrt(n)``.

    Neighbouring windows of one text are alike. If the scores are ordered, the standard error is that of a first-order
    autoregression, ``sqrt((1 + r) / (1 - r))`` times the one above, where ``r`` is the autocorrelation of neighbouring
    residuals, ``r1 = sum(e_i e_(i+1)) / sum(e_i^2)``, corrected for its bias to ``r1 + (1 + 3 r1) / n`` (Marriott and
    Pope, Biometrika 41:390-402, 1954) and never below 0. Because ``r`` is estimated too, Student's t has
    ``n (1 - r^2) / (3 + r^2)`` degrees of freedom: by the delta method, the variance of the logarithm of the estimated
    variance is ``2 (1 + r^2) / (n (1 - r^2))`` for the spread and ``4 / (n (1 - r^2))`` for ``r``.

    For other scores in [0, 1] than 0/1, and for those with groups, the interval allows for what a sample may not show.
    Its variance is ``1 / n^2`` larger, that of one more document that changes by 1. On the side to which the
    differences are skewed, the reach of the interval is that of a Cornish-Fisher expansion,
    ``stderr (q + k (2 q^2 + 1) / 6)`` instead of ``stderr q``, where ``q`` is the quantile of Student's t and
    ``k = |sum(e_i^3)| / sum(e_i^2)^1.5`` the skewness over ``sqrt(n)`` (N. J. Johnson, Journal of the American
    Statistical Association 73:536-544, 1978; P. Hall, JRSS B 54:221-228, 1992). The other side stays as it is, because
    in small samples the estimated skewness itself errs. On neither side is the reach below ``1 - ((1 - level) / 2)^(1 /
    n)``: so large may be the share of documents of which ``n`` show none, and each of them could change by 1.

    Args:
        variant: ``n`` finite scores.
        baseline: ``n`` finite scores of the same documents in the same order.
        weights: sizes for scores that are totals, such as the tokens of a window.
        groups: group per document, such as the story of a question; documents with the same group count as one unit,
            and ``""`` marks a document without a group.
        level: confidence of the interval, between 0 and 1.
        ordered: the scores are of parts of one text, in its order; they get Student's t whatever their kind.

    Raises:
        ValueError: if the lengths differ, nothing is paired, a score is not finite, or the level is not between 0
            and 1.
    """
    v, b = np.asarray(variant, np.float64), np.asarray(baseline, np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, np.float64)
    if not v.size or v.shape != b.shape or v.shape != w.shape or (groups is not None and len(groups) != v.size):
        raise ValueError(f"scores do not pair: {v.shape} of the variant, {b.shape} of the baseline, {w.shape} weights")
    if not (np.isfinite(v).all() and np.isfinite(b).all() and np.isfinite(w).all() and w.sum() > 0):
        raise ValueError("a score or weight is not finite")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    d = v - b
    totals, sizes = (d, w) if groups is None else _by_group(d, w, groups)
    value = float(totals.sum() / sizes.sum())
    residuals = totals - value * sizes
    stderr, freedom = _stderr(residuals, sizes), totals.size - 1.0
    if ordered and stderr:
        stderr, freedom = _autocorrelated(residuals, stderr)
    kind = "unbounded" if ordered or weights is not None else _kind(np.concatenate([v, b]))
    student = _Student(value, stderr or 0.0, freedom)
    if kind != "unbounded":
        # One document of difference 1 among n has the variance 1 / n of a single draw, 1 / n^2 of the mean.
        student = _Student(value, math.hypot(student.stderr, 1 / d.size), freedom, _skewness(residuals), 1.0, d.size)
    low, high, p, method = _interval(totals, student, kind, level, grouped=totals.size < d.size)
    changed = int(np.count_nonzero(totals))
    higher, lower = int((d > 0).sum()), int((d < 0).sum())
    counts = d.size, higher, lower, changed
    return PairedDifference(
        value, stderr, low, high, *counts, method, totals.size, p, student.skewness, student.largest
    )


def mean_stderr(stderrs: Sequence[float | None]) -> float | None:
    """Compute the standard error of the mean of ``k`` independent values: ``sqrt(sum(se_i^2)) / k``.

    Returns:
        ``None`` if one of the standard errors is ``None``.
    """
    known = [stderr for stderr in stderrs if stderr is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(stderrs) else None


def mean_difference(differences: Sequence[PairedDifference], *, level: float = 0.95) -> PairedDifference:
    """Estimate the mean of the differences of ``k`` tasks with equal weights, and its interval.

    The interval is Student's t on ``sqrt(sum(se_i^2)) / k`` with Satterthwaite's degrees of freedom,
    ``sum(se_i^2)^2 / sum(se_i^4 / (n_i - 1))`` for the ``n_i`` units of a task. It is longer where the differences are
    skewed, and has the least reach of `paired_difference` for ``k`` times the documents of the smallest task. The
    interval is about other documents of the same tasks. With fewer than six changed documents in total there is no
    interval, because no exact test could decide.

    If one of the intervals is a betting sequence, the mean lies between the lowest and the highest end: the smallest
    true difference is above the end of its own interval with the same confidence, and so is the mean, which is not
    smaller; likewise the largest. Such an interval has the confidence of its parts, whatever `level`, and no p-value.

    Args:
        differences: at least one difference.
        level: confidence of the interval, between 0 and 1.
    """
    value = math.fsum(d.value for d in differences) / len(differences)
    stderr = mean_stderr([d.stderr for d in differences])
    counts = np.sum([(d.n, d.higher, d.lower, d.changed, d.units) for d in differences], axis=0)
    n, higher, lower, changed, units = map(int, counts)
    if any(d.method == "betting sequence" for d in differences):
        low, high = _around(value, differences)
        return PairedDifference(value, stderr, low, high, n, higher, lower, changed, "betting sequence", units, None)
    if stderr is None or changed < MIN_CHANGED:
        return PairedDifference(value, stderr, None, None, n, higher, lower, changed, "", units, None)
    variances = [(d.stderr or 0.0) ** 2 for d in differences]
    spread = math.fsum(s * s / (d.units - 1) for s, d in zip(variances, differences, strict=True))
    freedom = math.fsum(variances) ** 2 / spread if spread else math.inf
    cubes = math.fsum(s**1.5 * d.skewness for s, d in zip(variances, differences, strict=True))
    student = _Student(
        value,
        stderr,
        freedom,
        cubes / math.fsum(variances) ** 1.5 if stderr else 0.0,
        math.fsum(d.largest for d in differences) / len(differences),
        len(differences) * min(d.n for d in differences),
    )
    low, high = student.interval(level)
    return PairedDifference(
        value, stderr, low, high, n, higher, lower, changed, "t", units, student.p(), student.skewness, student.largest
    )


def _around(value: float, differences: Sequence[PairedDifference]) -> tuple[float | None, float | None]:
    ends = [(d.low, d.high) for d in differences if d.low is not None and d.high is not None]
    if len(ends) < len(differences):
        return None, None
    if all(low == high for low, high in ends):  # every document of every task was seen
        return value, value
    return min(low for low, _ in ends), max(high for _, high in ends)


def scaled(difference: PairedDifference, factor: float) -> PairedDifference:
    """Return a difference in other units; a negative factor counts losses as gains."""
    ends = [None if end is None else factor * end for end in (difference.low, difference.high)]
    counts = (difference.higher, difference.lower)
    if factor < 0:
        ends.reverse()
        counts = counts[::-1]
    return replace(
        difference,
        value=factor * difference.value,
        stderr=None if difference.stderr is None else abs(factor) * difference.stderr,
        low=ends[0],
        high=ends[1],
        higher=counts[0],
        lower=counts[1],
        skewness=math.copysign(1.0, factor) * difference.skewness,
        largest=abs(factor) * difference.largest,
    )


def _right_wrong_interval(higher: int, lower: int, n: int, level: float) -> tuple[float, float, float]:
    """Return the ends and the p-value for 0/1 scores; the interval excludes zero where McNemar's test finds a change.

    Where answers mostly change in one direction, Tango's interval ends too far from zero and the adjusted one too near
    to its other end: together they cover.
    """
    low, high = score_interval(higher, lower, n, level=level)
    few = higher + lower < MIN_CHANGED
    p = mcnemar_exact(higher, lower) if few else mcnemar_mid_p(higher, lower)
    if few or p >= 1 - level:
        return min(low, 0.0), max(high, 0.0), p
    other = adjusted_interval(higher, lower, n, level=level)
    if not other[0] <= 0 <= other[1]:
        low, high = min(low, other[0]), max(high, other[1])
    return low, high, p


def _stderr(residuals: Floats, sizes: Floats) -> float | None:
    n = residuals.size
    return None if n < 2 else float(np.sqrt(n / (n - 1) * (residuals @ residuals)) / sizes.sum())


def _autocorrelated(residuals: Floats, stderr: float) -> tuple[float, float]:
    """Return the standard error and degrees of freedom of scores that follow each other in one text."""
    n = residuals.size
    neighbours = float(residuals[1:] @ residuals[:-1] / (residuals @ residuals))
    r = min(max(neighbours + (1 + 3 * neighbours) / n, 0.0), _MAX_AUTOCORRELATION)
    return stderr * math.sqrt((1 + r) / (1 - r)), n * (1 - r * r) / (3 + r * r)


@dataclass(frozen=True)
class _Student:
    """Student's t around a value.

    Attributes:
        skewness: skewness of the residuals over ``sqrt(n)``; the interval is longer on that side.
        largest: the largest possible change of a document; 0 if there is none.
        documents: number of documents that could have shown it.
    """

    value: float
    stderr: float
    freedom: float
    skewness: float = 0.0
    largest: float = 0.0
    documents: int = 1

    def interval(self, level: float) -> tuple[float, float]:
        q = float(special.stdtrit(self.freedom, (1 + level) / 2))
        least = self.largest * upper_bound(0, self.documents, level)
        low, high = (
            max(self.stderr * (q + max(0.0, side * self.skewness) * (2 * q * q + 1) / 6), least) for side in (-1, 1)
        )
        return self.value - low, self.value + high

    def p(self) -> float:
        """Return 1 minus the level of the interval that ends at zero."""
        if not self.value:
            return 1.0
        distance = abs(self.value)
        p = 2 * max(0.0, 1 - distance / self.largest) ** self.documents if self.largest else 0.0
        if self.stderr:
            # The positive q with q + k (2 q^2 + 1) / 6 = distance / stderr.
            k = max(0.0, -math.copysign(1.0, self.value) * self.skewness) / 3
            beyond = max(0.0, distance / self.stderr - k / 2)
            q = 2 * beyond / (1 + math.sqrt(1 + 4 * k * beyond))
            p = max(p, 2 * float(special.stdtr(self.freedom, -q)))
        return min(1.0, p)


def _skewness(residuals: Floats) -> float:
    squares = float(residuals @ residuals)
    return math.fsum(residuals**3) / squares**1.5 if squares else 0.0  # whatever the order of documents


def _kind(scores: Floats) -> Literal["binary", "unit", "unbounded"]:
    if np.isin(scores, (0.0, 1.0)).all():
        return "binary"
    return "unit" if scores.min() >= 0 and scores.max() <= 1 else "unbounded"


def _interval(
    totals: Floats,
    student: _Student,
    kind: Literal["binary", "unit", "unbounded"],
    level: float,
    *,
    grouped: bool,
) -> tuple[float | None, float | None, float | None, Method]:
    n, higher, lower = totals.size, int((totals > 0).sum()), int((totals < 0).sum())
    few = higher + lower < MIN_CHANGED
    if few and (grouped or kind == "unbounded"):
        return None, None, None, ""
    if kind == "binary" and not grouped:
        return *_right_wrong_interval(higher, lower, n, level), "score"
    if few:
        # A mean difference of scores in [0, 1] is at most the share of improved documents.
        low, high = -upper_bound(lower, n, level), upper_bound(higher, n, level)
        return low, high, mcnemar_exact(higher, lower), "exact bounds"
    return *student.interval(level), student.p(), "t"


def _by_group(totals: Floats, sizes: Floats, groups: Sequence[str]) -> tuple[Floats, Floats]:
    numbers: dict[str | int, int] = {}
    index = np.array([numbers.setdefault(group or place, len(numbers)) for place, group in enumerate(groups)])
    return np.bincount(index, totals).astype(np.float64), np.bincount(index, sizes).astype(np.float64)
