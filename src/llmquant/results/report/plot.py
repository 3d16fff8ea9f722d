"""The report's main charts as a matplotlib figure: differences with their margin, and quality against memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmquant.errors import MissingDependencyError, RequestError
from llmquant.machine.hardware import MIB
from llmquant.results.pareto import ParetoPoint
from llmquant.results.pooled import common_unit
from llmquant.results.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"worse": "#d23b2e", "better": "#178a43", "no worse": "#178a43"}
_OTHER = "#5c6670"


def plot(rows: Sequence[Row], points: Sequence[ParetoPoint]) -> Figure:
    """Draw the pooled differences of all variants, and beside them the trade-offs that were measured.

    Args:
        rows: of a study.
        points: of the same study.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
        RequestError: if no variant was compared with a baseline.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a plot requires matplotlib, which is not installed", hint='Run: pip install "llmquant[plot]"'
        ) from error
    pooled = [row for row in rows if row.pooled and row.difference is not None]
    if not pooled:
        raise RequestError(
            "there is nothing to plot: no variant was compared with a baseline",
            hint="Add an evaluator of quality, for example -t coqa, and a baseline.",
        )
    costs = [
        (title, placed)
        for title, placed in (
            ("peak while running, MiB", [(p, p.memory / MIB) for p in points if p.memory is not None]),
            ("ms per token or query", [(p, p.latency) for p in points if p.latency is not None]),
        )
        if placed
    ]
    figure = Figure(figsize=(5.5 * (1 + len(costs)), max(3.0, 1.6 + 0.3 * len(pooled))), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(costs), squeeze=False)[0]
    _forest(first, pooled)
    for axes, (title, placed) in zip(others, costs, strict=True):
        _trade_off(axes, placed, title)
    return figure


def _forest(axes: Axes, rows: Sequence[Row]) -> None:
    several = len({row.model for row in rows}) > 1
    unit, factors = common_unit(rows)
    for place, (row, factor) in enumerate(zip(rows, factors, strict=True)):
        colour = _COLOURS.get(row.verdict or "", _OTHER)
        if row.difference_low is not None and row.difference_high is not None:
            ends = [factor * row.difference_low, factor * row.difference_high]
            axes.plot(ends, [place, place], color=colour)
        axes.plot([factor * (row.difference or 0.0)], [place], "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    if rows[0].margin is not None:
        margin = factors[0] * rows[0].margin
        axes.axvspan(min(axes.get_xlim()[0], -2 * margin), -margin, color="#d23b2e", alpha=0.1, lw=0)
    axes.set_yticks(range(len(rows)), [f"{row.model} {row.variant}" if several else row.variant for row in rows])
    axes.margins(y=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"difference in {unit}, 95% intervals")
    axes.set_title("All tasks")


def _trade_off(axes: Axes, placed: Sequence[tuple[ParetoPoint, float]], title: str) -> None:
    for point, cost in placed:
        colour = "#2b6cb0" if point.on_front else "white"
        axes.errorbar(cost, point.gain, yerr=1.96 * point.stderr, color="#9aa5af", zorder=1)
        axes.scatter([cost], [point.gain], color=colour, edgecolors="#2b6cb0", zorder=2)
        axes.annotate(point.variant, (cost, point.gain), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(x=0.3, y=0.15)
    axes.set_xlabel(title)
    axes.set_ylabel(f"difference in {placed[0][0].unit}")
    axes.set_title("Filled: on the Pareto front")
