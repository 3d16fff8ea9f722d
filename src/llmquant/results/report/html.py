"""Tables as a small piece of HTML, for notebooks and for pages."""

from __future__ import annotations

from collections.abc import Iterable

from llmquant.results.report.table import Table, Tone
from llmquant.study.neutral import html_text

_CLASSES: dict[Tone, str] = {"plain": "", "good": "good", "bad": "bad", "quiet": "quiet", "failed": "bad"}

# Text takes the page's own colour. Green and red are of middling lightness: above 4.1 to 1 on white and on #111.
STYLE = """
.llmquant { font: 13px/1.45 system-ui, sans-serif; color: inherit; max-width: 100%; }
.llmquant h4 { font-size: 15px; font-weight: 600; margin: 1em 0 .2em; }
.llmquant .title { font-weight: 600; margin: 1.1em 0 0; }
.llmquant .part { overflow-x: auto; margin: .7em 0 0; }
.llmquant table { border-collapse: collapse; margin: 0; color: inherit; background: none; border: 0;
  font-variant-numeric: tabular-nums; font-size: inherit; }
.llmquant caption { caption-side: top; text-align: left; font-weight: 600; padding: 0 0 .25em; color: inherit; }
.llmquant tr { background: none !important; }
.llmquant th, .llmquant td { padding: .25em .9em .25em 0; border: 0; white-space: nowrap; vertical-align: bottom;
  color: inherit; background: none; }
.llmquant th { font-weight: 600; border-bottom: 1px solid rgba(128, 128, 128, .7); }
.llmquant td, .llmquant tbody th { border-bottom: 1px solid rgba(128, 128, 128, .25); }
.llmquant tbody th { font-weight: 400; }
.llmquant .part .l { text-align: left; }
.llmquant .part .r { text-align: right; }
.llmquant .first { padding-left: 1.6em; }
.llmquant .good { color: #178a43; font-weight: 600; }
.llmquant .bad { color: #dc4a3d; font-weight: 600; }
.llmquant .quiet { opacity: .7; }
.llmquant ul { margin: .4em 0 0; padding-left: 1.2em; font-size: 12px; opacity: .85; white-space: normal; }
.llmquant pre { margin: .4em 0 0; overflow-x: auto; color: inherit; background: none; }
.llmquant li { margin: 0; overflow-wrap: anywhere; }
"""


def to_html_table(tables: Iterable[Table]) -> str:
    """Write tables as one ``<div>`` with its own style; every text is escaped."""
    return f'<div class="llmquant"><style>{STYLE}</style>{to_html_parts(tables)}</div>'


def to_html_parts(tables: Iterable[Table]) -> str:
    """Write tables for a page with `STYLE`; every text is escaped."""
    parts = []
    heading = ""
    for table in (each.mapped(html_text) for each in tables):
        if table.heading and table.heading != heading:
            parts.append(f"<h4>{table.heading}</h4>")
        heading = table.heading
        if table.is_verdict or not table.columns:  # a sentence as a caption would be as narrow as its table
            parts.append(f'<p class="title">{table.title}</p>')
        if table.columns:
            parts.append(_table(table))
        if table.footnotes:
            parts.append("<ul>" + "".join(f"<li>{note}</li>" for note in table.footnotes) + "</ul>")
        if table.code:
            parts.append("<pre>" + "\n".join(table.code) + "</pre>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    columns = [table.column(index) for index in range(len(table.columns))]
    starts = {group[0] for group in table.groups() if len(group) > 1}
    classes = [
        column.align[0] + (" first" if index in starts and index > 1 else "") for index, column in enumerate(columns)
    ]
    head = "".join(
        f'<th scope="col" class="{kind}">{"<br>".join(filter(None, column.name))}</th>'
        for kind, column in zip(classes, columns, strict=True)
    )
    body = []
    for row in table.cells():
        label, *cells = row
        line = "".join(
            f'<td class="{" ".join(filter(None, (kind, _CLASSES[cell.tone])))}">{cell.text}</td>'
            for kind, cell in zip(classes[1:], cells, strict=True)
        )
        body.append(f'<tr><th scope="row" class="l">{label.text}</th>{line}</tr>')
    caption = f"<caption>{table.title}</caption>" if table.title and not table.is_verdict else ""
    return (
        f'<div class="part"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


__all__ = ["STYLE", "to_html_parts", "to_html_table"]
