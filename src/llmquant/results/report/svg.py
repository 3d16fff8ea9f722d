"""Pieces of inline SVG: axes, marks and text.

Horizontal positions are percentages and vertical ones pixels, so that a chart fills any width and its text keeps its
size. Colours are classes of ``page.css``. A mark has its number, in the units of the row, as ``data-value``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from llmquant.study.neutral import html_text

_STEPS = (1.0, 2.0, 5.0, 10.0)
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """A scale from values to positions.

    Attributes:
        low: value at `start`.
        high: value at `end`, above `low`.
        start: position of `low`, in per cent or pixels.
        end: position of `high`.
        log: whether equal ratios have equal lengths.
    """

    low: float
    high: float
    start: float = 2.0
    end: float = 98.0
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float = 2.0, end: float = 98.0, *, log: bool = False) -> Axis:
        """Make an axis with room for all finite values."""
        known = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(known), max(known)
        if log:
            room = max(high / low, 1.5) ** 0.06
            return cls(low / room, high * room, start, end, log=True)
        if low == high:
            room = 0.5 * abs(high) or 1.0
            return cls(low - room, high + room, start, end)
        room = 0.06 * (high - low)
        return cls(low - room if low else 0.0, high + room if high else 0.0, start, end)

    def at(self, value: float) -> float:
        """Return a value's position; values beyond an end, such as infinity, are at the end."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about five round values."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1.0,) if last - first > 3 else (1.0, 2.0, 5.0)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [tick for tick in found if self.low <= tick <= self.high]
        raw = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(step for step in _STEPS if step * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def tick_text(value: float) -> str:
    """Write the number at a tick."""
    return f"{value:,.10g}" if abs(value) >= 1e-4 or not value else f"{value:.0e}"


def dot(x: float, y: float, kind: str, value: float, radius: float = 4.5) -> str:
    """Draw a point."""
    return f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:g}" data-value="{value!r}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a line."""
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def bar(x1: float, x2: float, y: float, height: float, kind: str, value: float | None = None) -> str:
    """Draw a rectangle from left to right; without a value it is a zone."""
    left, right = sorted((x1, x2))
    data = "" if value is None else f' data-value="{value!r}"'
    return f'<rect class="{kind}" x="{left:.2f}%" y="{y:.1f}" width="{right - left:.2f}%" height="{height:.1f}"{data}/>'


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "middle", dx: float = 0.0) -> str:
    """Write a text, escaped; `dx` moves it by pixels."""
    moved = f' dx="{dx:g}"' if dx else ""
    return f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}"{moved} text-anchor="{anchor}">{html_text(said)}</text>'


def svg(height: float, body: str, title: str, kind: str = "") -> str:
    """Put marks into an image as wide as its box, described by `title`, which is shown on hovering."""
    head = f'<svg class="{kind}" role="img" width="100%" height="{height:g}">'
    return f"{head}<title>{html_text(title)}</title>{body}</svg>"


def group(body: str, title: str, kind: str = "") -> str:
    """Put marks together under one title, which is shown on hovering."""
    return f'<g class="{kind}"><title>{html_text(title)}</title>{body}</g>'
