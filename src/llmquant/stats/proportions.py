"""Bound a proportion, or a difference of paired proportions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special


def score_interval(higher: int, lower: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Compute Tango's score interval for a difference of paired proportions, ``(higher - lower) / n``.

    The interval holds the differences ``x`` with ``(h - l - n x)^2 <= z^2 n (2 q + x (1 - x))``, where ``q`` is the
    most likely share of ``lower`` pairs given ``x``: the larger root of ``2 n q^2 + B q - l x (1 - x) = 0``,
    ``B = (2 n - h + l) x - h - l``. T. Tango, Statistics in Medicine 17:891-908 (1998).

    Args:
        higher: pairs in which only the variant scores 1.
        lower: pairs in which only the baseline scores 1.
        n: number of all pairs, at least 1.
        level: confidence of the interval, between 0 and 1.
    """
    z2 = float(special.ndtri((1 + level) / 2)) ** 2
    value = (higher - lower) / n

    def excess(x: float) -> float:
        linear = (2 * n - higher + lower) * x - higher - lower
        root = np.sqrt(max(linear * linear + 8 * n * lower * x * (1 - x), 0.0))
        q = (root - linear) / (4 * n)
        return float((higher - lower - n * x) ** 2 - z2 * n * (2 * q + x * (1 - x)))

    return _boundary(excess, value, -1.0), _boundary(excess, value, 1.0)


def adjusted_interval(higher: int, lower: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Compute Bonett and Price's adjusted interval for a difference of paired proportions.

    ``u - d +- z sqrt((u + d - (u - d)^2) / (n + 2))`` with ``u = (h + 1) / (n + 2)`` and ``d = (l + 1) / (n + 2)``.
    D. G. Bonett, R. M. Price, Journal of Educational and Behavioral Statistics 37:479-488 (2012).

    Args:
        higher: pairs in which only the variant scores 1.
        lower: pairs in which only the baseline scores 1.
        n: number of all pairs.
        level: confidence of the interval, between 0 and 1.
    """
    up, down = (higher + 1) / (n + 2), (lower + 1) / (n + 2)
    reach = float(special.ndtri((1 + level) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - reach), min(1.0, up - down + reach)


def upper_bound(count: int, n: float, level: float) -> float:
    """Bound a proportion from above, at ``level`` together with the bound from below (Clopper and Pearson)."""
    return 1.0 if count == n else float(special.betaincinv(count + 1, n - count, (1 + level) / 2))


def _boundary(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Find by bisection where the excess turns from negative to positive."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if excess(middle) < 0:
            inside = middle
        else:
            outside = middle
    return outside
