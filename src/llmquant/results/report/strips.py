"""Charts with one strip per variant: intervals of differences, sizes and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmquant.machine.hardware import MIB
from llmquant.results.pooled import shown_name
from llmquant.results.report.block import Block, Measure, conditions, ordered
from llmquant.results.report.quality import Differences, is_quality, quality_measures
from llmquant.results.report.retrieval import headlines
from llmquant.results.report.svg import Axis, bar, dot, is_finite, line, svg, text, tick_text
from llmquant.results.report.table import Tone, number
from llmquant.results.report.verdict import TONES, pooled_decimals, pooled_difference
from llmquant.results.row import Row
from llmquant.study.neutral import html_text

_HEIGHT = 22.0
_MIDDLE = _HEIGHT / 2
_CLASSES: dict[Tone, str] = {"good": "good", "bad": "bad"}


@dataclass(frozen=True)
class _Strip:
    """One variant: marks, and its numbers as text."""

    label: str
    marks: str
    said: str
    tone: str = ""


def pooled_forest(block: Block) -> str:
    """Draw the differences of a model's variants over all tasks; ``""`` if there are none."""
    charts = []
    pooled = [row for row in block.rows if row.pooled and row.difference is not None]
    for unit in dict.fromkeys(row.unit for row in pooled):
        rows = [row for row in pooled if row.unit == unit]
        decimals = pooled_decimals(rows)
        marks = [
            _Interval(row, row.difference, row.difference_low, row.difference_high, pooled_difference(row, decimals))
            for row in rows
        ]
        charts.append(_forest(f"All tasks: difference in {unit}", marks, 1.0, ratio=False))
    return "".join(charts)


def forests(block: Block) -> list[str]:
    """Draw the differences of a model's variants for each measure with pairs."""
    found = []
    for measure in dict.fromkeys([*headlines(block), *quality_measures(block)]):
        rows = [row for row in block.column(measure) if row.pairs is not None]
        if not rows:
            continue
        write = Differences.of(block, measure)
        name = shown_name(measure.metric if measure.metric == measure.task else f"{measure.task} {measure.metric}")
        what = f"ratio to {block.baseline}" if write.ratio else f"difference{' in points' if write.unit == '%' else ''}"
        caption = ", ".join(filter(None, (f"{name}: {what}", conditions(measure.at))))
        marks = [_Interval(row, *write.parts(row), write(row).text) for row in rows]
        found.append(_forest(caption, marks, write.scale, ratio=write.ratio))
    return found


@dataclass(frozen=True)
class _Interval:
    """A row's difference or ratio, scaled, and both as text."""

    row: Row
    value: float | None
    low: float | None
    high: float | None
    said: str


def _forest(caption: str, intervals: Sequence[_Interval], scale: float, *, ratio: bool) -> str:
    none = 1.0 if ratio else 0.0
    first = intervals[0].row
    worse = -1.0 if first.higher_is_better else 1.0
    margin = first.margin if first.higher_is_better is not None else None
    limit = none if margin is None else none + worse * margin * scale
    ends = [end for each in intervals for end in (each.value, each.low, each.high) if end is not None]
    axis = Axis.over([none + none - limit, 2 * limit - none, *ends])
    backdrop = line(axis.at(none), 0, axis.at(none), _HEIGHT, "none")
    if limit != none:
        backdrop = bar(axis.at(limit), axis.start if worse < 0 else axis.end, 0, _HEIGHT, "beyond") + backdrop
    strips = []
    for each in intervals:
        tone = _CLASSES.get(TONES.get(each.row.verdict, "plain"), "")
        marks = ""
        if each.low is not None and each.high is not None and not math.isnan(each.low + each.high):
            marks = line(axis.at(each.low), _MIDDLE, axis.at(each.high), _MIDDLE, f"interval {tone}".strip())
        exact = each.row.ratio if ratio else each.row.difference
        if each.value is not None and exact is not None and math.isfinite(exact):
            marks += dot(axis.at(each.value), _MIDDLE, f"mark {tone}".strip(), exact)
        strips.append(_Strip(each.row.variant, marks, f"{each.said} {each.row.verdict or ''}".strip(), tone))
    return _figure(caption, strips, axis, backdrop)


def cost_charts(block: Block) -> list[str]:
    """Draw the variants' memory while running, and their times and rates."""
    costs = [measure for measure in block.measures if not is_quality(block, measure)]
    found = []
    sizes = [_largest([m for m in costs if m.metric == metric]) for metric in ("weights_bytes", "running_peak_bytes")]
    known = [measure for measure in sizes if measure is not None]
    if known:
        what = "Memory, MiB: weights" + (", and peak while running" if sizes[1] is not None else "")
        found.append(_bars(block, known, what, 1 / MIB))
    for metric, what in _TIMES.items():
        measure = _largest([m for m in costs if m.metric == metric])
        if measure is not None:
            at = conditions(measure.at)
            found.append(_bars(block, [measure], f"{what}{f' ({at})' if at else ''}", 1.0))
    return found


_TIMES = {
    "prefill_ms": "Prefill, ms",
    "decode_ms_per_token": "Decode, ms per token",
    "generated_tokens_per_s": "Generated tokens per second",
    "query_encode_ms": "Encoding a query, ms",
    "documents_per_s": "Encoded documents per second",
}


def _largest(measures: Sequence[Measure]) -> Measure | None:
    found = ordered(measures)
    return found[-1] if found else None


def _bars(block: Block, measures: Sequence[Measure], caption: str, factor: float) -> str:
    """Draw bars from zero; the first measure's is solid, and lies on the second's."""
    rows = {m: {row.variant: row for row in block.column(m) if is_finite(row.value)} for m in measures}
    values = [row.value * factor for found in rows.values() for row in found.values() if row.value is not None]
    axis = Axis.over([0.0, *values], start=0.5)
    strips = []
    for variant in block.variants:
        found = [row for m in measures if (row := rows[m].get(variant)) is not None and row.value is not None]
        if not found:
            continue
        marks = "".join(
            bar(axis.at(0), axis.at((row.value or 0.0) * factor), 5, 12, kind, row.value)
            for row, kind in reversed(list(zip(found, ("bar", "bar more"), strict=False)))
        )
        numbers = [number((row.value or 0.0) * factor, 1 if factor != 1 else _decimals(values)) for row in found]
        strips.append(_Strip(variant, marks, " / ".join(numbers)))
    return _figure(caption, strips, axis, line(axis.at(0), 0, axis.at(0), _HEIGHT, "none"))


def _decimals(values: Sequence[float]) -> int:
    least = min((abs(value) for value in values if value and math.isfinite(value)), default=1.0)
    return max(0, 2 - math.floor(math.log10(least)))


def _figure(caption: str, strips: Sequence[_Strip], axis: Axis, backdrop: str) -> str:
    """Put strips below each other, with labels to the left, numbers to the right and the axis at the bottom."""
    lines = [
        f'<div class="strip"><span class="label">{html_text(strip.label)}</span>'
        + svg(_HEIGHT, backdrop + strip.marks, f"{strip.label}: {strip.said}")
        + f'<span class="said {strip.tone}">{html_text(strip.said)}</span></div>'
        for strip in strips
    ]
    ticks = "".join(
        line(axis.at(tick), 0, axis.at(tick), 4, "tick") + text(axis.at(tick), 16, tick_text(tick))
        for tick in axis.ticks()
    )
    foot = f'<div class="strip foot"><span></span>{svg(20, ticks, caption, "axis")}<span></span></div>'
    return f'<figure class="strips"><figcaption>{html_text(caption)}</figcaption>{"".join(lines)}{foot}</figure>'
