"""Tables as text: in a terminal, where they fit its width, and as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from llmquant.results.report.table import Table, Tone, is_group
from llmquant.study.neutral import markdown_text, printable

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "quiet": "dim", "failed": "bold red"}
# A label may take so much of the width before it is wrapped.
_LABEL_SHARE = 0.45
# And so much, that none of its words is broken, unless the table would have two parts more.
_WORD_SHARE = 0.6
# Spaces between two columns.
_GAP = 3
# So many footnotes of a table, or items of a list, are shown unless more are asked for.
_FOOTNOTES, _ITEMS = 3, 10


def print_tables(tables: Iterable[Table], console: Console, *, explain: bool = False) -> None:
    """Print tables, in colour where the console has it.

    Args:
        tables: in reading order; one wider than the console is split between columns, its first one repeated.
        explain: print all footnotes of a table, not only the first three, and all items of a list, not only ten.
    """
    for part in _parts(tables, console.width, explain=explain):
        console.print(part, soft_wrap=isinstance(part, Text) and part.no_wrap is True)


def render(tables: Iterable[Table], width: int, *, explain: bool = False) -> str:
    """Write tables as plain text, no line but those to copy longer than `width`; `explain` as in `print_tables`."""
    console = Console(width=width, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        print_tables(tables, console, explain=explain)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _parts(tables: Iterable[Table], width: int, *, explain: bool) -> Iterator[RenderableType]:
    heading = ""
    for place, table in enumerate(each.mapped(printable) for each in tables):
        if place:
            yield Text()
        if table.heading and table.heading != heading:
            yield from (Text(table.heading, style="bold underline"), Text())
        heading = table.heading
        yield Text(table.title, style="bold")
        label = _label_width(table, width)
        split = _split(table, width, label)
        widths = _aligned(table, split, width, label)
        for index, columns in enumerate(split):
            if index:
                yield Text()
            yield _rich(table, columns, label, widths)
        if table.footnotes:
            yield _footnotes(table, explain=explain)
        yield from (Text(f"  {line}", no_wrap=True) for line in table.code)


def _label_width(table: Table, width: int) -> int:
    named = (row[0].text for row in table.cells() if not is_group(row))
    longest = max((len(word) for text in named for word in text.split()), default=0)
    least = max(16, int(width * _LABEL_SHARE))
    whole = max(least, min(longest, int(width * _WORD_SHARE)))
    return whole if len(_split(table, width, whole)) <= len(_split(table, width, least)) + 1 else least


def _split(table: Table, width: int, label: int) -> list[list[int]]:
    """Choose the columns of each part, so that every part fits where that is possible."""
    parts: list[list[int]] = []
    for group in table.groups():
        if parts and _natural_width(table, [*parts[-1], *group], label) <= width:
            parts[-1] += group
        else:
            parts.append([0, *group])
    return parts


def _aligned(table: Table, split: Sequence[Sequence[int]], width: int, label: int) -> list[int]:
    """Choose widths that the columns of all parts share; none if one part would become too wide."""
    if len(split) < 2:
        return []
    widths = [0] * max(map(len, split))
    for columns in split:
        for place, index in enumerate(columns):
            widths[place] = max(widths[place], _natural_width(table, [index], label))
    return widths if sum(widths) + _GAP * (len(widths) - 1) <= width else []


def _natural_width(table: Table, columns: Sequence[int], label: int) -> int:
    # So wide that nothing wraps but labels.
    console = Console(width=10_000, color_system=None, force_jupyter=False)
    return Measurement.get(console, console.options, _rich(table, columns, label)).maximum


def _rich(table: Table, columns: Sequence[int], label: int, widths: Sequence[int] = ()) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for place, index in enumerate(columns):
        column = table.column(index)
        heading = Text("\n".join(filter(None, column.name)), justify=column.align)
        least = widths[place] if widths else None
        rich.add_column(
            heading,
            justify=column.align,
            vertical="bottom",
            overflow="fold",
            min_width=least,
            max_width=None if index else label,
        )
    for row in table.cells():
        bold = "bold" if is_group(row) else ""
        rich.add_row(*(Text(row[index].text, style=bold or _STYLES[row[index].tone]) for index in columns))
    return rich


def _footnotes(table: Table, *, explain: bool) -> RichTable:
    grid = RichTable.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(overflow="fold")
    shown = table.footnotes if explain else table.footnotes[: _FOOTNOTES if table.columns else _ITEMS]
    for note in shown:
        grid.add_row("·" if table.columns else "-", Text(note))
    if len(shown) < len(table.footnotes):
        more = len(table.footnotes) - len(shown)
        grid.add_row(
            "·" if table.columns else "-", Text(f"{more} more with --explain (in Python: explain=True)", style="dim")
        )
    return grid


def to_markdown(tables: Iterable[Table]) -> str:
    """Write tables as Markdown: headings, pipe tables, lists of footnotes."""
    parts: list[str] = []
    heading = ""
    for written in tables:
        table = written.mapped(markdown_text)
        if table.heading and table.heading != heading:
            parts.append(f"## {table.heading}")
        heading = table.heading
        parts.append(f"### {table.title}")
        if table.columns:
            parts.append(_pipes(table))
        if table.footnotes:
            parts.append("\n".join(f"- {note}" for note in table.footnotes))
        if table.code:  # indented as code of the last item, so that no text in it can end the block
            parts.append("\n".join(f"      {printable(line)}" for line in written.code))
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    columns = [table.column(index) for index in range(len(table.columns))]
    lines = [
        [column.title for column in columns],
        ["---:" if column.align == "right" else ":---" for column in columns],
        *([cell.text for cell in row] for row in table.cells()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
