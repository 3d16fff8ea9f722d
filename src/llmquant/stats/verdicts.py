"""Turn the interval of a difference and a margin into a verdict.

A margin is the largest loss that is still acceptable. With the difference counted as a gain (its sign follows
``higher_is_better``), the 95% interval decides, in this order:

=============  ========================================================================================
``worse``      the whole interval is below ``-margin``
``better``     the whole interval is above 0
``no worse``   the whole interval is above ``-margin``
``undecided``  anything else: more documents would decide
=============  ========================================================================================

An interval that excludes zero shows a *real* loss or gain whatever the verdict: [-4, -1] at a margin of 2 is a real
loss, and whether it is above 2 is undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.stats.paired import MIN_CHANGED, PairedDifference
from llmquant.stats.planning import document_sd, documents_needed

Verdict = Literal["better", "no worse", "worse", "differs", "no signal", "undecided"]
Real = Literal["loss", "gain", ""]


@dataclass(frozen=True)
class Judgement:
    """The conclusion from a difference.

    Attributes:
        verdict: ``None`` without a margin. If neither direction is better, ``differs`` or ``undecided``.
        real: whether the interval excludes zero, and on which side.
        no_worse_than: the interval's end on the side of a loss: the smallest margin that holds, with the sign of the
            difference; ``None`` without an interval or a direction.
        documents_needed: about how many documents would decide in 80% of studies, if the estimate is right; ``None``
            unless undecided.
    """

    verdict: Verdict | None
    real: Real = ""
    no_worse_than: float | None = None
    documents_needed: int | None = None


def judge(difference: PairedDifference, *, higher_is_better: bool | None, margin: float | None) -> Judgement:
    """Judge a difference at a margin.

    Args:
        margin: the largest acceptable loss, at least 0, in the units of the difference; ``None`` for none.
    """
    low, high = difference.low, difference.high
    if low is None or high is None:
        return Judgement(None if margin is None and higher_is_better is not None else "undecided")
    if higher_is_better is None:
        return Judgement("differs" if low > 0 or high < 0 else "undecided")
    sign = 1.0 if higher_is_better else -1.0
    least, most = sorted((sign * low, sign * high))
    real: Real = "gain" if least > 0 else "loss" if most < 0 else ""
    if margin is None:
        return Judgement(None, real, sign * least)
    if most < -margin:
        return Judgement("worse", real, sign * least)
    if least > 0:
        return Judgement("better", real, sign * least)
    if least > -margin or least == most == 0:
        return Judgement("no worse", real, sign * least)
    return Judgement("undecided", real, sign * least, _documents_needed(difference, sign * difference.value, margin))


def _documents_needed(difference: PairedDifference, gain: float, margin: float) -> int | None:
    """Return how many documents would decide if the estimate is right."""
    sd = document_sd(difference)
    if not sd or not margin + gain:
        return None
    # An estimate near the margin would take very many, and may be wrong: plan for half a margin from it, unless the
    # present documents would show that.
    half = gain if abs(gain + margin) > margin / 2 else -margin / 2
    needed = [documents_needed(margin, sd, difference=d, largest=difference.student.largest) or 0 for d in (half, gain)]
    # The present interval is longer than its distance to the margin; one that decides in 80% of studies has 0.7 of this
    # distance, from twice as many documents. Where few documents change, an interval shortens faster.
    least = difference.n + 1 if difference.changed < MIN_CHANGED else 2 * difference.n
    return max(least, needed[0] if needed[0] > difference.n else needed[1])
