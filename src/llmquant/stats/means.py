"""Average differences over tasks, each of which counts the same, and put differences into other units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmquant.stats.paired import MIN_CHANGED, Method, PairedDifference, Student


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
    ``sum(se_i^2)^2 / sum(se_i^4 / f_i)`` for the standard errors and degrees of freedom of the tasks' intervals, and
    with the skewness of the sum. It is about other documents of the same tasks. Its reach is at least that of any one
    task's interval over ``k``, because the other tasks cannot show what this one may have missed, and that of
    ``(sum L_i)^2 / sum(L_i^2 / n_i)`` documents without a change, of which each could change by ``L_i``. It includes
    zero if fewer than six documents changed in total, because no exact test could decide. Where it includes zero, the
    p-value is at least ``1 - level``. Without an interval of each task there is none of the mean.

    If one of the intervals is a betting sequence, the mean lies between the lowest and the highest end: the smallest
    true difference is above the end of its own interval with the same confidence, and so is the mean, which is not
    smaller; likewise the largest. Such an interval has the confidence of its parts, whatever `level`, and no p-value.

    Args:
        differences: at least one difference; their intervals have the confidence `level`.
        level: confidence of the interval, between 0 and 1.
    """
    value = math.fsum(d.value for d in differences) / len(differences)
    stderr = mean_stderr([d.stderr for d in differences])
    counts = np.sum([(d.n, d.higher, d.lower, d.changed, d.units) for d in differences], axis=0)
    n, higher, lower, changed, units = map(int, counts)
    student = _mean_student(value, [d.student for d in differences])
    reaches = [max(d.high - d.value, d.value - d.low) for d in differences if d.low is not None and d.high is not None]
    low: float | None
    high: float | None
    low = high = p = None
    method: Method = ""
    if any(d.method == "betting sequence" for d in differences):
        low, high = _around(value, differences)
        method = "betting sequence"
    elif len(reaches) == len(differences):
        reach = max(reaches) / len(differences)
        low, high = student.interval(level)
        low, high, p, method = min(low, value - reach), max(high, value + reach), student.p(), "t"
        if changed < MIN_CHANGED or low <= 0 <= high:
            low, high, p = min(low, 0.0), max(high, 0.0), max(p, 1 - level)
    return PairedDifference(value, stderr, low, high, n, higher, lower, changed, method, units, p, student)


def _mean_student(value: float, parts: Sequence[Student]) -> Student:
    variances = [part.stderr**2 for part in parts]
    total = math.fsum(variances)
    spread = math.fsum(s * s / part.freedom for s, part in zip(variances, parts, strict=True) if s)
    cubes = math.fsum(part.skewness * part.stderr**3 for part in parts)
    largest = math.fsum(part.largest for part in parts)
    return Student(
        value,
        math.sqrt(total) / len(parts),
        total**2 / spread if spread else math.inf,
        cubes / total**1.5 if total else 0.0,
        largest / len(parts),
        largest**2 / math.fsum(part.largest**2 / part.documents for part in parts) if largest else 1.0,
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
    student = difference.student
    return replace(
        difference,
        value=factor * difference.value,
        stderr=None if difference.stderr is None else abs(factor) * difference.stderr,
        low=ends[0],
        high=ends[1],
        higher=counts[0],
        lower=counts[1],
        student=replace(
            student,
            value=factor * student.value,
            stderr=abs(factor) * student.stderr,
            skewness=math.copysign(1.0, factor) * student.skewness,
            largest=abs(factor) * student.largest,
        ),
    )
