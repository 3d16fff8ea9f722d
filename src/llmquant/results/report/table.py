"""The one form every table takes before it is rendered: text in named columns, and numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Tone = Literal["plain", "good", "bad", "quiet", "failed"]

_NUMBER = re.compile(r"[+-]?[\d,.]+%?|–|")


@dataclass(frozen=True)
class Cell:
    """A text and its tone; a renderer may colour the cell, but the text alone is complete."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Attributes:
        name: lines of the heading, including the unit.
        group: columns of one group stay side by side when a table is split; ``""`` for no group.
        align: alignment of the heading and the cells.
    """

    name: tuple[str, ...]
    group: str = ""
    align: Literal["left", "right"] = "right"

    @property
    def title(self) -> str:
        """Return the heading on one line."""
        return " ".join(filter(None, self.name))


@dataclass(frozen=True)
class Table:
    """A titled table; without columns it is a titled list of its footnotes.

    Attributes:
        columns: the first one names the rows; a string is a heading of one line.
        rows: a cell for each column; a string is a plain cell. One with nothing but its first cell names what follows.
        footnotes: whole sentences; those that change how the table is read come first.
        heading: what several tables belong to, such as a model; shown once for consecutive tables.
        is_verdict: whether the title is the verdict on the variants.
        code: lines to copy, which no renderer wraps.
    """

    title: str
    columns: tuple[str | Column, ...] = ()
    rows: tuple[tuple[str | Cell, ...], ...] = ()
    footnotes: tuple[str, ...] = ()
    heading: str = ""
    is_verdict: bool = False
    code: tuple[str, ...] = ()

    def column(self, index: int) -> Column:
        """Return a column; a plain heading's is aligned right if its cells are numbers."""
        column = self.columns[index]
        if isinstance(column, Column):
            return column
        numeric = index > 0 and all(_NUMBER.fullmatch(row[index].text) for row in self.cells())
        return Column((column,), align="right" if numeric else "left")

    def cells(self) -> list[list[Cell]]:
        """Return the rows, every cell a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def mapped(self, write: Callable[[str], str]) -> Table:
        """Return the table with `write` applied to each text, so that a renderer escapes all texts at once."""
        columns = [self.column(index) for index in range(len(self.columns))]
        return Table(
            write(self.title),
            tuple(replace(column, name=tuple(map(write, column.name))) for column in columns),
            tuple(tuple(replace(cell, text=write(cell.text)) for cell in row) for row in self.cells()),
            tuple(map(write, self.footnotes)),
            write(self.heading),
            self.is_verdict,
            tuple(map(write, self.code)),
        )

    def without_empty_rows(self) -> Table:
        """Leave out rows with only dashes, unless all rows are like this: other tables have their values."""
        kept = tuple(
            row for row, cells in zip(self.rows, self.cells(), strict=True) if any(c.text != "–" for c in cells[1:])
        )
        return replace(self, rows=kept) if kept else self

    def without_empty_columns(self) -> Table:
        """Leave out columns with only dashes."""
        lines = self.cells()
        kept = [place for place in range(len(self.columns)) if any(line[place].text != "–" for line in lines)]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[place] for place in kept), rows=rows)

    def groups(self) -> Iterator[list[int]]:
        """Yield the indices of the columns after the first, group by group."""
        group: list[int] = []
        name = ""
        for index in range(1, len(self.columns)):
            this = self.column(index).group
            if group and (not this or this != name):
                yield group
                group = []
            group.append(index)
            name = this
        if group:
            yield group


def is_group(row: Sequence[Cell]) -> bool:
    """Return whether a row only names the rows after it."""
    return len(row) > 1 and not any(cell.text for cell in row[1:])


_MOST = 6
_DOUBLE = 17
_LONG = 1e18


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
    """Write a number, or words for a number that is not finite."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if abs(value) >= _LONG:
        return f"{value:{'+' if sign else ''}.3e}"
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):  # a zero has no sign
        return text.lstrip("+-")
    return text


def number_apart(value: float, other: float, decimals: int, *, sign: bool = False) -> str:
    """Write a number with at least `decimals`, and as many as needed to differ from `other`."""
    while value != other and decimals < _DOUBLE and number(value, decimals) == number(other, decimals):
        decimals += 1
    if not other and decimals > _MOST:
        return f"{value:{'+' if sign else ''}.0e}"
    return number(value, decimals, sign=sign)
