"""Tables as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmquant.report.table import Table

# What Markdown would take for markup. An underscore inside a word is none, and labels are full of them.
_MARKUP = re.compile(r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|\](?=[(\[])|^[#+-](?=\s)")


def to_markdown(tables: Iterable[Table]) -> str:
    """Write tables as Markdown: headings, pipe tables, lists of footnotes."""
    parts: list[str] = []
    heading = ""
    for table in tables:
        if table.heading and table.heading != heading:
            parts.append(f"## {_escape(table.heading)}")
        heading = table.heading
        parts.append(f"### {_escape(table.title)}")
        if table.columns:
            parts.append(_pipes(table))
        if table.footnotes:
            parts.append("\n".join(f"- {_escape(note)}" for note in table.footnotes))
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    columns = [table.column(index) for index in range(len(table.columns))]
    lines = [
        [_escape(column.title) for column in columns],
        ["---:" if column.align == "right" else ":---" for column in columns],
        *([_escape(cell.text) for cell in row] for row in table.cells()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
