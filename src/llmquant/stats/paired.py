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
=================================  ======================================================================

Quantization's typical damage is slightly reworded answers in many documents and broken answers in a few. Plain t is
misled twice: if the sample has no broken answer, it takes them to be impossible, and if it has a few, their number and
the standard error are both too small at once. `benchmarks/coverage.py` shows how often each interval errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
class Student:
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
    documents: float = 1.0

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of the interval."""
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
        student: what a mean over tasks takes from the difference.
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
    student: Student


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
    residuals, ``r1 = sum(e_i e_(i+1)) / sum(e_i^2)``, corrected for its bias of ``-(1 + 3 r) / n`` to
    ``(n r1 + 1) / (n - 3)`` (Marriott and Pope, Biometrika 41:390-402, 1954) and never below 0. Because ``r`` is
    estimated too, Student's t has ``n (1 - r^2) / (3 + r^2)`` degrees of freedom: by the delta method, the variance of
    the logarithm of the estimated variance is ``2 (1 + r^2) / (n (1 - r^2))`` for the spread and
    ``4 / (n (1 - r^2))`` for ``r``. With less than one degree there is no interval: so few windows that follow each
    other so closely do not show how much they vary.

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
    student = Student(value, stderr or 0.0, freedom)
    grouped = totals.size < d.size
    if kind != "unbounded":
        # One document of difference 1 among n has the variance 1 / n of a single draw, 1 / n^2 of the mean. Among 0/1
        # scores the interval allows for it otherwise.
        wide = student.stderr if kind == "binary" and not grouped else math.hypot(student.stderr, 1 / d.size)
        student = Student(value, wide, freedom, _skewness(residuals), 1.0, d.size)
    low, high, p, method = _interval(totals, student, kind, level, grouped=grouped, ordered=ordered)
    changed = int(np.count_nonzero(totals))
    higher, lower = int((d > 0).sum()), int((d < 0).sum())
    return PairedDifference(value, stderr, low, high, d.size, higher, lower, changed, method, totals.size, p, student)


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
    r = min(max((n * neighbours + 1) / max(n - 3, 1), 0.0), _MAX_AUTOCORRELATION)
    return stderr * math.sqrt((1 + r) / (1 - r)), n * (1 - r * r) / (3 + r * r)


def _skewness(residuals: Floats) -> float:
    squares = float(residuals @ residuals)
    return math.fsum(residuals**3) / squares**1.5 if squares else 0.0  # whatever the order of documents


def _kind(scores: Floats) -> Literal["binary", "unit", "unbounded"]:
    if np.isin(scores, (0.0, 1.0)).all():
        return "binary"
    return "unit" if scores.min() >= 0 and scores.max() <= 1 else "unbounded"


def _interval(
    totals: Floats,
    student: Student,
    kind: Literal["binary", "unit", "unbounded"],
    level: float,
    *,
    grouped: bool,
    ordered: bool,
) -> tuple[float | None, float | None, float | None, Method]:
    n, higher, lower = totals.size, int((totals > 0).sum()), int((totals < 0).sum())
    few = higher + lower < MIN_CHANGED
    if ordered and not higher + lower and n >= MIN_CHANGED:
        # Likelihoods equal to the last bit in each window are of the same weights: nothing is unseen.
        return 0.0, 0.0, 1.0, "t"
    if (few and (grouped or kind == "unbounded")) or student.freedom < 1:
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
