"""The answer: one sentence per model, and one line per variant over all its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.results.pooled import pooled_margin, shown_name
from llmquant.results.report.block import Block
from llmquant.results.report.table import Cell, Column, Table, Tone, decimals_for, number, number_apart
from llmquant.results.row import Row
from llmquant.study.counting import some

TONES: dict[str | None, Tone] = {"worse": "bad", "better": "good", "no worse": "good"}

_BEST_FIRST = ("better", "no worse", "differs", "undecided", "worse", "no signal", "not judged")
# Of more variants, those of one verdict are counted.
_NAMED = 6


def verdict_table(block: Block) -> Table | None:
    """Make the table of a model's pooled rows; ``None`` if there are none."""
    rows = [row for row in block.rows if row.pooled]
    if not rows:
        return None
    decimals = pooled_decimals(rows)
    units = " or ".join(sorted({row.unit for row in rows if row.unit}, reverse=True))
    columns = (
        Column(("variant",), align="left"),
        Column((f"difference{units and ', '}{units}", "[95% interval]"), "verdict"),
        Column(("no worse", "than"), "verdict"),
        Column(("verdict",), "verdict", "left"),
    )
    cells = tuple(
        (
            Cell(row.variant),
            Cell(pooled_difference(row, decimals)),
            Cell("–" if row.no_worse_than is None else number(row.no_worse_than, decimals, sign=True)),
            Cell(said(row), TONES.get(row.verdict, "plain")),
        )
        for row in rows
    )
    return Table(_sentence(block, rows), columns, cells, tuple(_footnotes(rows)), is_verdict=True)


def said(row: Row) -> str:
    """Write a verdict, with a loss that is real although it may be small."""
    if row.verdict is None:
        return "–"
    return f"{row.verdict}, a real loss" if row.real == "loss" and row.verdict != "worse" else row.verdict


def _sentence(block: Block, rows: Sequence[Row]) -> str:
    """Say which variants are no worse, undecided and worse, the best first."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.verdict or "not judged", []).append(row.variant)
    many = len(rows) > _NAMED
    parts = []
    for word in (each for each in _BEST_FIRST if each in groups):
        labels = groups[word]
        verb = ("has", "have") if word == "no signal" else ("is", "are")
        named = f"all {len(rows)} variants" if len(labels) == len(rows) > 2 else _listed(labels, many=many)
        parts.append(f"{named} {verb[len(labels) > 1]} {word}")
    limit = pooled_margin(block.rows)
    return f"Verdict{f' at a margin of {limit}' if limit else ''}: {'; '.join(parts)}."


def _listed(names: Sequence[str], *, many: bool) -> str:
    """Name a few variants, and count them where the sentence would become a list."""
    if many and len(names) > 2:
        return f"{len(names)} variants"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def pooled_decimals(rows: Sequence[Row]) -> int:
    """Return the decimals that the intervals of pooled rows leave."""
    halves = [
        (row.difference_high - row.difference_low) / 2
        for row in rows
        if row.difference_high is not None and row.difference_low is not None
    ]
    return decimals_for(halves, least=1) or 1


def pooled_difference(row: Row, decimals: int) -> str:
    """Write a pooled difference and its interval."""
    if row.difference is None:
        return "–"
    value = number(row.difference, decimals, sign=True)
    if row.difference_low is None or row.difference_high is None:
        return value
    ends = (number_apart(end, 0.0, decimals, sign=True) for end in (row.difference_low, row.difference_high))
    return f"{value} [{', '.join(ends)}]"


def _footnotes(rows: Sequence[Row]) -> list[str]:
    judged = (row for row in rows if row.verdict is not None and row.mean_of)
    over = dict.fromkeys(
        f"{len(row.mean_of)} tasks" if len(row.mean_of) > 2 else " and ".join(map(shown_name, row.mean_of))
        for row in judged
    )
    notes = []
    silent = [f"not judged, as {row.no_verdict}" if row.no_verdict else row.evaluator_note for row in rows]
    for reason in dict.fromkeys(filter(None, silent)):
        labels = [row.variant for row, own in zip(rows, silent, strict=True) if own == reason]
        notes.append(f"{some(labels)}: {reason}.")
    if over:
        unit = "a difference of -1 is a loss as large as the margin of its task"
        scale = unit if any(row.unit == "margins" for row in rows) else "a negative difference is a loss"
        same = ", each task counting the same" if any(len(row.mean_of) > 1 for row in rows) else ""
        notes.append(f"Over {'; or over '.join(over)}{same}; {scale}.")
    few = [row.variant for row in rows if row.verdict == "undecided" and row.difference_low is None]
    if few:
        notes.append(f"{some(few)}: too few documents for an interval; the footnotes of the next tables say why.")
    needed = [
        f"{row.variant} about {_rounded(row.documents_needed)} (now {row.n:,}{_of(row)})"
        for row in rows
        if row.documents_needed is not None and row.n is not None
    ]
    return [*notes, f"Documents that would decide: {some(needed, between='; ')}."] if needed else notes


def _of(row: Row) -> str:
    """Say how many documents there are, where fewer than would decide."""
    there = row.population
    return f"; there are {there:,}" if there is not None and there < (row.documents_needed or 0) else ""


def _rounded(count: int) -> str:
    """Write a count with two digits, as it is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"
