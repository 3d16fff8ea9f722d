"""Plan how many documents a paired comparison needs, from the spread of the differences of single documents.

What counts is the standard deviation ``sd`` of variant minus baseline per document. For right or wrong answers it
follows from the discordance, the share of documents whose answer changes between right and wrong:
``sd = sqrt(discordance)`` where as many answers improve as get worse. It cannot be found from the accuracies alone, and
scaling the size of an unpaired study by ``1 - correlation`` needs a correlation that nobody knows before the study.
"""

from __future__ import annotations

import math

from scipy import special

from llmquant.stats.paired import MIN_CHANGED, PairedDifference
from llmquant.stats.proportions import upper_bound

_POWER = 0.8


def documents_needed(
    margin: float,
    sd: float,
    *,
    difference: float = 0.0,
    largest: float = 0.0,
    power: float = _POWER,
    level: float = 0.95,
) -> int | None:
    """Compute how many documents decide whether a variant is worse than its baseline by more than a margin.

    ``n = ((z_((1 + level) / 2) + z_power) sd / (margin + difference))^2``, rounded up: then the interval, of half-width
    ``z sd / sqrt(n)``, lies on one side of ``-margin`` with probability ``power``. However little the documents seen
    change: if a document can change by ``largest``, at least as many are needed as show that hardly any does,
    ``log((1 - level) / 2) / log(1 - |margin + difference| / largest)``.

    Args:
        margin: the loss that would still be accepted, positive, in the units of the score.
        sd: standard deviation of the differences of single documents, see `document_sd`.
        difference: the true difference, negative for a loss; 0 plans for a variant without a loss.
        largest: the largest possible change of a document: 1 for scores in [0, 1], 0 if there is none.
        power: probability of a decision.
        level: confidence of the interval.

    Returns:
        At least 1; ``None`` if the difference is a loss of exactly the margin, which no number of documents decides.
    """
    distance = abs(margin + difference)
    if not distance:
        return None
    least = math.log((1 - level) / 2) / math.log1p(-distance / largest) if distance < largest else 1.0
    return max(1, math.ceil((_reach(power, level) * sd / distance) ** 2), math.ceil(least))


def reachable_margin(
    documents: int, sd: float, *, largest: float = 0.0, power: float = _POWER, level: float = 0.95
) -> float:
    """Compute the smallest margin that a study of so many documents can show for a variant without a loss.

    ``(z_((1 + level) / 2) + z_power) sd / sqrt(n)``, and at least ``largest`` times the share of documents of which
    ``n`` may show none; the inverse of `documents_needed`.

    Args:
        documents: number of paired documents, at least 1.
        sd: standard deviation of the differences of single documents, see `document_sd`.
        largest: the largest possible change of a document: 1 for scores in [0, 1], 0 if there is none.
        power: probability that the study shows it; 0.5 gives the half-width of the interval.
        level: confidence of the interval.
    """
    return max(_reach(power, level) * sd / math.sqrt(documents), largest * upper_bound(0, documents, level))


def document_sd(pilot: PairedDifference) -> float | None:
    """Estimate the standard deviation of the differences of single documents: ``stderr sqrt(n)``.

    Where documents share a source or follow each other in one text, it includes what that costs. If fewer than six
    documents changed, one more is counted that changes from right to wrong, because a pilot in which nothing changed
    does not show that nothing ever will.

    Returns:
        ``None`` if the pilot has no standard error, or no interval.
    """
    if pilot.stderr is None or not pilot.method:
        return None
    seen = pilot.stderr * math.sqrt(pilot.n)
    return math.hypot(seen, 1 / math.sqrt(pilot.n)) if pilot.changed < MIN_CHANGED else seen


def _reach(power: float, level: float) -> float:
    return float(special.ndtri((1 + level) / 2) + special.ndtri(power))
