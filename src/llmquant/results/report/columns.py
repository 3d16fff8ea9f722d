"""Columns of measured costs, cell by cell, and the table that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from llmquant.results.report.block import Block, Measure, conditions, ordered, varying
from llmquant.results.report.numbers import MIB, decimals_for, decimals_of, number
from llmquant.results.report.table import Cell, Column, Table
from llmquant.results.rows import Row

Filled: TypeAlias = tuple[Column, list[Cell]]
"""A column and its cells, one a variant."""


def measured(block: Block, measure: Measure, name: tuple[str, ...], *, beside: Measure | None = None) -> Filled:
    """Fill a column with a measure's values; those of a second measure follow in brackets."""
    column = block.column(measure)
    factor = 1 / MIB if measure.unit == "bytes" else 1.0
    decimals = decimals_for(factor * row.stderr for row in column if row.stderr)
    if decimals is None:
        decimals = decimals_of(factor * row.value for row in column if row.value is not None)

    def write(row: Row) -> Cell:
        text = number(factor * (row.value or 0.0), decimals)
        if row.stderr is not None:
            text += f" ± {number(factor * row.stderr, decimals)}"
        second = None if beside is None else block.row(row.variant, beside)
        if second is not None and second.value is not None:
            text += f" ({number(factor * second.value, decimals)})"
        return Cell(text)

    return Column(name), [block.cell(variant, measure, write) for variant in block.variants]


def unknown(block: Block, measures: Sequence[Measure]) -> list[Filled]:
    """Fill columns with metrics that nobody here knows, each at its smallest and largest conditions."""
    found = []
    for metric in dict.fromkeys((m.evaluator_key, m.task, m.metric, m.unit) for m in measures):
        mine = ordered(m for m in measures if (m.evaluator_key, m.task, m.metric, m.unit) == metric)
        for measure in dict.fromkeys([mine[0], mine[-1]]):
            unit = "MiB" if measure.unit == "bytes" else measure.unit
            name = f"{measure.metric.removesuffix('_bytes').replace('_', ' ')} {unit}".strip()
            found.append(measured(block, measure, (measure.task, name, conditions(measure.at, only=varying(mine)))))
    return found


def table(block: Block, title: str, columns: Sequence[Filled], footnotes: Sequence[str] = ()) -> Table | None:
    """Put columns beside the variants' names; ``None`` where there are none."""
    if not columns:
        return None
    names = [Cell(variant) for variant in block.variants]
    rows = tuple(zip(names, *(cells for _, cells in columns), strict=True))
    heads = (Column(("variant",), align="left"), *(column for column, _ in columns))
    return Table(title, heads, rows, tuple(footnotes)).without_empty_rows()
