"""Tables as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from llmquant.results.report.table import Table
from llmquant.study.neutral import markdown_text


def to_markdown(tables: Iterable[Table]) -> str:
    """Write tables as Markdown: headings, pipe tables, lists of footnotes."""
    parts: list[str] = []
    heading = ""
    for table in (each.mapped(markdown_text) for each in tables):
        if table.heading and table.heading != heading:
            parts.append(f"## {table.heading}")
        heading = table.heading
        parts.append(f"### {table.title}")
        if table.columns:
            parts.append(_pipes(table))
        if table.footnotes:
            parts.append("\n".join(f"- {note}" for note in table.footnotes))
    return "\n\n".join(parts) + "\n"


def _pipes(table: Table) -> str:
    columns = [table.column(index) for index in range(len(table.columns))]
    lines = [
        [column.title for column in columns],
        ["---:" if column.align == "right" else ":---" for column in columns],
        *([cell.text for cell in row] for row in table.cells()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
