"""Test whether scores changed, for one comparison or a family of comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special


def mcnemar_exact(higher: int, lower: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test: twice a binomial tail, at most 1.

    Under no difference, each of the ``m = higher + lower`` changed documents is as likely to be better as worse:
    ``p = min(1, 2 P(X <= min(higher, lower)))`` for ``X`` of the binomial distribution with ``m`` draws of 1/2.

    Args:
        higher: documents in which only the variant is right.
        lower: documents in which only the baseline is right.
    """
    return min(1.0, 2 * float(special.bdtr(min(higher, lower), higher + lower, 0.5)))


def mcnemar_mid_p(higher: int, lower: int) -> float:
    """Compute the mid-p of McNemar's test, which counts half of the probability of the observed split.

    ``p = 2 P(X <= min(higher, lower)) - P(X = min(higher, lower))``, and 1 for an even split. The exact test rejects
    far less often than its level says; the mid-p is close to it, and in Fagerland, Lydersen and Laake (BMC Medical
    Research Methodology 13:91, 2013) never above it.

    Args:
        higher: documents in which only the variant is right.
        lower: documents in which only the baseline is right.
    """
    few, changed = min(higher, lower), higher + lower
    if higher == lower:
        return 1.0
    below = float(special.bdtr(few - 1, changed, 0.5)) if few else 0.0
    return float(special.bdtr(few, changed, 0.5)) + below


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p-values of a family of ``k`` tests so that all of them together err as rarely as a single one.

    In increasing order, ``p_(i)`` becomes ``max over j <= i of min(1, (k - j + 1) p_(j))``. S. Holm, Scandinavian
    Journal of Statistics 6:65-70 (1979); valid for tests that depend on each other, as those of variants on the same
    documents do.

    Args:
        p_values: one per test; ``None`` for a comparison without a test, which stays ``None`` and is not counted.
    """
    known = np.array([p for p in p_values if p is not None])
    order = np.argsort(known, kind="stable")
    adjusted = np.empty(known.size)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(known[order] * np.arange(known.size, 0, -1)))
    found = iter(adjusted.tolist())
    return [None if p is None else next(found) for p in p_values]


def sidak_level(comparisons: int, level: float = 0.95) -> float:
    """Compute the confidence that each of ``k`` intervals needs for all to hold at once: ``level^(1 / k)``.

    Z. Sidak, Journal of the American Statistical Association 62:626-633 (1967); exact for independent intervals,
    conservative for the two-sided intervals of variants with the same baseline.

    Args:
        comparisons: number of intervals, at least 1.
        level: confidence of all of them together, between 0 and 1.
    """
    return float(level ** (1 / comparisons))
