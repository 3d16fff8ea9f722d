"""Numbers as people read them: no more digits than their uncertainty leaves, the same in a whole column."""

from __future__ import annotations

import math
from collections.abc import Iterable

MIB = 2**20

_MOST = 6
_DOUBLE = 17


def decimals_for(uncertainties: Iterable[float | None], *, least: int = 0) -> int | None:
    """Return the decimals that leave two digits of the smallest uncertainty; ``None`` where there is none."""
    known = [abs(u) for u in uncertainties if u is not None and math.isfinite(u) and u]
    if not known:
        return None
    return min(_MOST, max(least, 1 - math.floor(math.log10(min(known)))))


def decimals_of(values: Iterable[float | None], *, digits: int = 3) -> int:
    """Return the decimals that leave about `digits` digits of the smallest value."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    if not known:
        return 0
    return min(_MOST, max(0, digits - 1 - math.floor(math.log10(min(known)))))


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Write a number; what is not finite in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):  # a zero has no sign
        return text.lstrip("+-")
    return text


def number_apart(value: float, other: float, decimals: int, *, sign: bool = False) -> str:
    """Write a number with at least `decimals`, and as many as it takes to tell it from `other`."""
    while value != other and decimals < _DOUBLE and number(value, decimals) == number(other, decimals):
        decimals += 1
    return number(value, decimals, sign=sign)
