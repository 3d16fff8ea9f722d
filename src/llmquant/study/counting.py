"""Numbers of things in words for people."""

from __future__ import annotations

from collections.abc import Iterable

# Of more names, so many less one are written.
_NAMES = 6


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 layer``, ``2 layers``, ``2 queries``."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Write the plural of a regular noun."""
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def some(names: Iterable[str], *, between: str = ", ") -> str:
    """Write a few names, and count the others: ``a, b, c, d, e and 15 more``."""
    names = list(dict.fromkeys(names))
    if len(names) <= _NAMES:
        return between.join(names)
    return f"{between.join(names[: _NAMES - 1])} and {len(names) - _NAMES + 1} more"
