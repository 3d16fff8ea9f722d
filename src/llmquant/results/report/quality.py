"""The table of quality: each score with its uncertainty, its difference to the baseline, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from llmquant.errors import OptionError
from llmquant.results.pooled import margin_text, names, shown_name
from llmquant.results.report.block import Block, Measure, conditions, sample_count, varying
from llmquant.results.report.fidelity import is_fidelity
from llmquant.results.report.retrieval import headlines, not_encoded
from llmquant.results.report.table import Cell, Column, Table, decimals_for, decimals_of, number, number_apart
from llmquant.results.report.verdict import TONES
from llmquant.results.row import SAME_AS_PERPLEXITY, Row
from llmquant.study.call import Call
from llmquant.study.counting import counted, some
from llmquant.study.margins import is_share

_RATIO_DECIMALS = 3


def is_quality(block: Block, measure: Measure) -> bool:
    """Return whether a measure is quality; sizes and numbers that depend on the machine are costs."""
    return measure.unit != "bytes" and all(row.hardware is None for row in block.column(measure))


def quality_measures(block: Block) -> list[Measure]:
    """Return the measures that the table shows."""
    measures = [m for m in block.measures if is_quality(block, m) and not is_fidelity(block, m)]
    with_perplexity = {(m.evaluator_key, m.task) for m in measures if m.metric == "perplexity"}
    measures = [
        m for m in measures if m.metric not in SAME_AS_PERPLEXITY or (m.evaluator_key, m.task) not in with_perplexity
    ]
    searched = headlines(block)
    if len(searched) == 1:  # the table of retrieval shows the measure
        return [measure for measure in measures if measure != searched[0]]
    return measures


def quality_table(block: Block) -> Table | None:
    """Make the table; ``None`` if there are no measurements."""
    measures = quality_measures(block)
    if not measures:
        return None
    compared = len(block.variants) > 1 and block.baseline is not None
    columns = [Column(("variant",), align="left")]
    cells: list[list[Cell]] = [[Cell(variant) for variant in block.variants]]
    for measure in measures:
        heads, written = _columns(block, measure, _name(measure, measures), compared=compared)
        columns += heads
        cells += written
    rows = tuple(zip(*cells, strict=True))
    notes = [] if headlines(block) else not_encoded([block])  # beside a table of retrieval, that one has them
    return Table("Quality", tuple(columns), rows, (*notes, *_footnotes(block, measures, compared=compared)))


def _columns(
    block: Block, measure: Measure, name: tuple[str, ...], *, compared: bool
) -> tuple[list[Column], list[list[Cell]]]:
    """Write a measure's columns: value, difference, verdict."""
    column = block.column(measure)
    scale, unit = _scale(column)
    least = _least(scale)
    decimals = decimals_for((scale * row.stderr for row in column if row.stderr), least=least)
    if decimals is None:
        decimals = least or decimals_of((row.value for row in column), digits=4)

    def value(row: Row) -> Cell:
        text = number(scale * (row.value or 0.0), decimals)
        return Cell(text if row.stderr is None else f"{text} ± {number(scale * row.stderr, decimals)}")

    group = str(measure)
    columns = [Column(_heading(measure, name, unit, sample_count(column)), group)]
    written = [[block.cell(variant, measure, value) for variant in block.variants]]
    writers: list[tuple[Column, Callable[[Row], Cell]]] = []
    if compared:
        differences = Differences.of(block, measure)
        interval = "[95% interval]" if any(row.pairs is not None for row in column) else ""
        head = Column((f"× {block.baseline}" if differences.ratio else "difference", interval), group)
        writers.append((head, differences))
    if any(row.verdict is not None for row in column):
        writers.append((Column(("verdict",), group, "left"), _verdict))
    for head, write in writers:
        columns.append(head)
        written.append([_beside_value(block, variant, measure, write) for variant in block.variants])
    return columns, written


def _heading(measure: Measure, name: tuple[str, ...], unit: str, n: str) -> tuple[str, ...]:
    """Write a heading in short lines: the task, and the metric with its unit and number of documents."""
    first, *rest = name
    task, metric = (
        (measure.task, first.removeprefix(f"{measure.task} ")) if measure.metric != measure.task else ("", first)
    )
    shown = f"{metric} {unit}".strip()
    return (task, shown, *rest, n)


def _beside_value(block: Block, variant: str, measure: Measure, write: Callable[[Row], Cell]) -> Cell:
    """Leave a cell empty if the value's cell explains the gap."""
    row = block.row(variant, measure)
    return Cell("") if row is None or row.value is None else write(row)


class Differences:
    """Writes a measure's differences, or ratios, with as many decimals as their intervals leave.

    Attributes:
        scale: factor of the numbers: 100 for shares.
        unit: unit of the scaled values.
        ratio: whether ratios are written.
    """

    def __init__(self, column: Sequence[Row], scale: float, unit: str, *, ratio: bool) -> None:
        self.scale, self.unit, self.ratio = scale, unit, ratio
        parts = [self.parts(row) for row in column]
        reaches = [(high - low) / 2 for _, low, high in parts if low is not None and high is not None]
        fallback = decimals_of((value for value, _, _ in parts), digits=3)
        found = decimals_for(reaches)
        self._decimals = max(_least(scale), fallback if found is None else found)
        if ratio:
            self._decimals = min(_RATIO_DECIMALS, self._decimals)

    @classmethod
    def of(cls, block: Block, measure: Measure) -> Differences:
        """Prepare for a measure's rows."""
        column = block.column(measure)
        # A ratio of a number without a unit is a ratio of perplexities.
        ratio = any(row.ratio is not None for row in column) and not measure.unit
        return cls(column, *_scale(column), ratio=ratio)

    def __call__(self, row: Row) -> Cell:
        """Write a row's difference with its interval."""
        value, low, high = self.parts(row)
        if value is None:
            return Cell("baseline" if row.is_baseline else "–", "quiet")
        if low is None or high is None:
            return Cell(self._text(value))
        # An interval's end is shown as no difference only if it is exactly that, never with better or worse.
        none = 1.0 if self.ratio else 0.0
        ends = (number_apart(end, none, self._decimals, sign=not self.ratio) for end in (low, high))
        return Cell(f"{self._text(value)} [{', '.join(ends)}]")

    def parts(self, row: Row) -> tuple[float | None, float | None, float | None]:
        """Return the scaled value and the ends of its interval."""
        if self.ratio:
            return row.ratio, row.ratio_low, row.ratio_high
        found = (row.difference, row.difference_low, row.difference_high)
        value, low, high = (None if part is None else self.scale * part for part in found)
        return value, low, high

    def _text(self, value: float) -> str:
        return number(value, self._decimals, sign=not self.ratio)


def _verdict(row: Row) -> Cell:
    if row.verdict is None:
        return Cell("" if row.is_baseline else "–", "quiet")
    return Cell(row.verdict, TONES.get(row.verdict, "plain"))


def _footnotes(block: Block, measures: Sequence[Measure], *, compared: bool) -> list[str]:
    rows = [row for measure in measures for row in block.column(measure)]
    about = ["± is one standard error."] if any(row.stderr is not None for row in rows) else []
    if not compared:
        return about
    paired = [row for row in rows if row.pairs is not None]
    if paired:
        sequential = any(row.interval_method == "betting sequence" for row in paired)
        scope = "this whole benchmark, valid at every look" if sequential else "documents like these"
        text = f"Differences are to {block.baseline} on the same documents, with 95% intervals for {scope}."
        about = [" ".join([*about, text])]
    limit = margin_text(rows)
    if limit and {row.verdict for row in rows} & {"worse", "no worse", "undecided"}:
        about.append(
            f"worse: the whole interval is a loss above the margin ({limit}); no worse: none of it is; "
            "better: all of it is a gain; undecided: anything else."
        )
    whole = {row.task: row.pairs for row in paired if row.pairs == row.population}
    about += [
        f"All {pairs:,} documents of {task} were run: on this benchmark itself the differences are exact."
        for task, pairs in whole.items()
    ]
    return _warnings(rows, measures) + _unpaired(block, measures) + about


def _warnings(rows: Sequence[Row], measures: Sequence[Measure]) -> list[str]:
    """Say what changes how verdicts and differences are read."""
    notes = []
    if any(row.verdict == "no signal" for row in rows):
        notes.append(
            "no signal: every variant has the same score on every document, so these documents cannot "
            "distinguish a good variant from a broken one. Check the task's rows, or use an easier or harder task."
        )
    notes += [f"No verdict: {reason}." for reason in dict.fromkeys(row.no_verdict for row in rows if row.no_verdict)]
    real = [
        f"{row.variant} in {shown_name(names(row)[0])}" for row in rows if row.real == "loss" and row.verdict != "worse"
    ]
    if real:
        notes.append(f"Real losses, as the interval excludes zero, whatever the verdict: {some(real)}.")
    scored = {Measure.of(row): row.n or 0 for row in rows if row.is_baseline}
    notes += [
        f"{row.variant}, {_title(Measure.of(row), measures)}: compared on {counted(row.pairs, 'document')} in common."
        for row in rows
        if row.pairs is not None
        and row.interval_method != "betting sequence"
        and row.pairs < max(row.n or 0, scored.get(Measure.of(row), 0))
    ]
    return notes


def _unpaired(block: Block, measures: Sequence[Measure]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for measure in measures:
        others = [row for row in block.column(measure) if not row.is_baseline]
        for reason in dict.fromkeys(row.no_interval for row in others if row.no_interval):
            concerned = [row.variant for row in others if row.no_interval == reason]
            whose = "" if len(concerned) == len(others) else f" of {some(concerned)}"
            by_reason.setdefault(reason, []).append(_title(measure, measures) + whose)
    return [f"No interval for {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def _least(scale: float) -> int:
    """Return the least decimals: one of a percentage."""
    return 1 if scale == 100 else 0


def _scale(column: Sequence[Row]) -> tuple[float, str]:
    """Return the factor for values, and the unit to show."""
    values = [row.value for row in column if row.value is not None]
    share = not column[0].unit and all(0 <= value <= 1 or math.isnan(value) for value in values)
    if share and is_share(column[0].metric):
        return 100.0, "%"
    return 1.0, column[0].unit


def _name(measure: Measure, measures: Sequence[Measure]) -> tuple[str, ...]:
    """Name a measure: its task and metric, and on further lines how it differs from the others."""
    metric = shown_name(measure.metric)
    name = metric if measure.metric == measure.task else f"{measure.task} {metric}"
    like = [other for other in measures if (other.task, other.metric) == (measure.task, measure.metric)]
    evaluators = {other.evaluator_key: other.evaluator for other in like}
    apart = _told_apart(measure, list(evaluators.values())) if len(evaluators) > 1 else ""
    return tuple(filter(None, (name, apart, conditions(measure.at, only=varying(like)))))


def _told_apart(measure: Measure, evaluators: Sequence[str]) -> str:
    """Return the part of an evaluator's label that differs: its options, if all labels are of one plugin."""
    try:
        calls = [Call.parse(label) for label in (measure.evaluator, *evaluators)]
    except OptionError:  # a label need not be a call
        return measure.evaluator
    if len({call.name for call in calls}) > 1:
        return measure.evaluator
    args = [arg for arg in calls[0].args if arg != measure.task]
    return str(Call("", tuple(args), calls[0].options)).strip("()")


def _title(measure: Measure, measures: Sequence[Measure]) -> str:
    return ", ".join(_name(measure, measures))
