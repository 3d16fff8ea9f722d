"""Numbers of things in words for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 layer``, ``2 layers``, ``2 queries``."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Write the plural of a regular noun."""
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
