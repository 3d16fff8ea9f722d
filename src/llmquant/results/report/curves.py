"""Charts of two scales: quality against a cost, and divergence by position and by confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmquant.machine.hardware import MIB
from llmquant.results.pareto import ParetoPoint
from llmquant.results.report.block import Block
from llmquant.results.report.svg import Axis, dot, group, is_finite, line, svg, text, tick_text
from llmquant.results.row import Row
from llmquant.study.neutral import html_text

_HEIGHT = 280.0
_FOOT = 40.0  # of the horizontal axis
_TOP, _BOTTOM = 24.0, _HEIGHT - _FOOT
_LEFT, _RIGHT = 11.0, 96.0
# Up to this number, each line has its own colour; more lines share one, and the line under the pointer is emphasized.
_COLOURS = 6
# Labels are placed for a chart of this width in pixels, with letters of this size.
_WIDTH, _LETTER, _LINE = 400.0, 6.2, 13.0


@dataclass(frozen=True)
class _Point:
    """One variant in a plot: its cost, and its gain with the ends of the gain's interval."""

    at: ParetoPoint
    cost: float
    x: float
    low: float
    high: float

    @property
    def y(self) -> float:
        return self.at.gain


def pareto_charts(block: Block, points: Sequence[ParetoPoint]) -> list[str]:
    """Draw the gain of a model's variants against their memory and their latency."""
    intervals = {row.variant: row for row in block.rows if row.pooled}
    costs: tuple[tuple[str, str, Callable[[ParetoPoint], float | None], float], ...] = (
        ("Quality and memory", "peak while running, MiB", lambda point: point.memory, 1 / MIB),
        ("Quality and latency", "ms per token or query", lambda point: point.latency, 1.0),
    )
    found = []
    for caption, x_title, of, factor in costs:
        placed = []
        for point in points:
            cost, row = of(point), intervals.get(point.variant)
            if is_finite(cost) and is_finite(point.gain):
                ends = (None, None) if row is None else (row.difference_low, row.difference_high)
                low, high = (point.gain if end is None else end for end in ends)
                placed.append(_Point(point, cost, factor * cost, low, high))
        if len(placed) > 1:
            found.append(_scatter(caption, placed, x_title, f"difference in {points[0].unit}"))
    return found


def _scatter(caption: str, points: Sequence[_Point], x_title: str, y_title: str) -> str:
    """Draw points with the intervals of their gain; a line joins those that no other point beats in this plot."""
    across = Axis.over([0.0, *(point.x for point in points)], _LEFT, _RIGHT)
    up = Axis.over([0.0, *(end for point in points for end in (point.low, point.high))], _BOTTOM, _TOP)
    body = _frame(across, up, x_title, y_title)
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    for left, right in pairwise(front):
        body += line(across.at(left.x), up.at(left.y), across.at(right.x), up.at(left.y), "front")
        body += line(across.at(right.x), up.at(left.y), across.at(right.x), up.at(right.y), "front")
    wide = 6 * 100 / _WIDTH
    dots = [(across.at(point.x), up.at(point.y)) for point in points]
    taken = [(x - wide, y - 6, x + wide, y + 6) for x, y in dots]
    for point in sorted(points, key=lambda point: not point.at.on_front):
        x, y, name = across.at(point.x), up.at(point.y), point.at.variant
        marks = line(x, up.at(point.low), x, up.at(point.high), "error")
        marks += dot(x, y, "mark on" if point.at.on_front else "mark off", point.cost, 5)
        on = f"on the front with probability {point.at.probability:.2f}"
        said = f"{name}: {point.y:+.2f} {point.at.unit}, {point.x:,.1f} {x_title}; {on}"
        body += group(marks + _label(name, x, y, taken), said, "point")
    return _figure(caption, svg(_HEIGHT, body, caption, "plot"))


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """Write a name beside its point where there is room; elsewhere hovering shows it."""
    wide = len(name) * _LETTER * 100 / _WIDTH
    gap = 9 * 100 / _WIDTH
    for anchor, left in (("start", x + gap), ("end", x - gap - wide)):
        for down in (-8.0, 16.0, 4.0):
            box = (left, y + down - _LINE, left + wide, y + down)
            inside = left >= _LEFT and left + wide <= 100 and box[1] >= 0
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                return text(x, y + down, name, "name", anchor, 9.0 if anchor == "start" else -9.0)
    return ""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


_PARTS = {
    "position": ("Divergence by position in the text", "tokens before"),
    "confidence": ("Divergence by the baseline's confidence", "probability of the baseline's first choice"),
}


def divergence_charts(block: Block) -> list[str]:
    """Draw the Kullback-Leibler divergence of each variant from the baseline, by position and by confidence."""
    found = []
    for part, (caption, x_title) in _PARTS.items():
        rows = [row for row in block.rows if row.metric == "kl_divergence" and set(row.at) == {part}]
        for key in dict.fromkeys((row.evaluator_key, row.task) for row in rows):
            lines: dict[str, dict[str, Row]] = {}
            for row in rows:
                if (row.evaluator_key, row.task) == key and is_finite(row.value) and not row.is_baseline:
                    lines.setdefault(row.variant, {})[str(row.at[part])] = row
            if lines:
                found.append(_curves(f"{caption}, {key[1]}", lines, x_title))
    return found


def _curves(caption: str, lines: Mapping[str, Mapping[str, Row]], x_title: str) -> str:
    """Draw a line per variant over bins of equal width; divergences above 0 on a scale of ratios."""
    bins = list(dict.fromkeys(name for points in lines.values() for name in points))
    values = [row.value for points in lines.values() for row in points.values() if row.value is not None]
    bottom = max(_BOTTOM, _TOP + _LINE * len(lines))
    up = Axis.over(values, bottom, _TOP, log=min(values) > 0)
    last = 72.0  # names follow
    places = {name: _LEFT + 3 + (last - _LEFT - 3) * i / max(1, len(bins) - 1) for i, name in enumerate(bins)}
    body = _grid(up, "nats (mean)", last)
    body += "".join(text(places[name], bottom + 16, name, "tick-label") for name in bins)
    body += text((_LEFT + last) / 2, bottom + 33, x_title, "axis-title")
    ends = _apart([up.at(list(points.values())[-1].value or 0.0) for points in lines.values()], bottom)
    for index, (variant, points) in enumerate(lines.items()):
        spots = [(places[name], up.at(row.value or 0.0), row.value or 0.0) for name, row in points.items()]
        kind = f"series c{index}" if len(lines) <= _COLOURS else "series"
        marks = "".join(line(a[0], a[1], b[0], b[1], "curve") for a, b in pairwise(spots))
        marks += "".join(dot(x, y, "mark", value, 3.5) for x, y, value in spots)
        marks += text(spots[-1][0], ends[index] + 4, variant, "name", "start", 9)
        said = "; ".join(f"{name}: {row.value:.3g}" for name, row in points.items())
        body += group(marks, f"{variant}: {said}", kind)
    return _figure(caption, svg(bottom + _FOOT, body, caption, "plot"))


def _apart(heights: Sequence[float], bottom: float) -> list[float]:
    """Move labels so that none covers another, in their order and above the bottom."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    found = list(heights)
    for before, index in pairwise(order):
        found[index] = max(found[index], found[before] + _LINE)
    limit = bottom
    for index in reversed(order):
        found[index] = min(found[index], limit)
        limit = found[index] - _LINE
    return found


def _frame(across: Axis, up: Axis, x_title: str, y_title: str) -> str:
    body = _grid(up, y_title, _RIGHT)
    for tick in across.ticks():
        body += line(across.at(tick), _BOTTOM, across.at(tick), _BOTTOM + 4, "tick")
        body += text(across.at(tick), _BOTTOM + 16, tick_text(tick), "tick-label")
    return body + text((_LEFT + _RIGHT) / 2, _BOTTOM + 33, x_title, "axis-title")


def _grid(up: Axis, title: str, right: float) -> str:
    body = "".join(
        line(_LEFT, up.at(tick), right, up.at(tick), "none" if not tick else "grid")
        + text(_LEFT, up.at(tick) + 4, tick_text(tick), "tick-label", "end", -6)
        for tick in up.ticks()
    )
    return body + text(_LEFT, _TOP - 12, title, "axis-title", "start", 0)


def _figure(caption: str, image: str) -> str:
    return f"<figure><figcaption>{html_text(caption)}</figcaption>{image}</figure>"
