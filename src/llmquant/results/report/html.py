"""Tables as a small piece of HTML, for notebooks and for pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llmquant.results.report.table import Table, Tone, is_group
from llmquant.study.neutral import html_text

_CLASSES: dict[Tone, str] = {"plain": "", "good": "good", "bad": "bad", "quiet": "quiet", "failed": "bad"}
_UNBROKEN = re.compile(r"\[[^\]]*\]|± \S+")
# So many groups of columns do not fit beside each other.
_WIDE = 3

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
.llmquant .whole { white-space: nowrap; }
.llmquant tbody th.group { font-weight: 600; padding-top: .8em; overflow-wrap: anywhere; }
.llmquant .part .l { text-align: left; }
.llmquant tbody th, .llmquant td.l { white-space: normal; }
.llmquant .parts { display: flex; flex-wrap: wrap; column-gap: 2em; }
.llmquant .part .r { text-align: right; }
.llmquant .first { padding-left: 1.6em; }
.llmquant .good { color: #178a43; font-weight: 600; }
.llmquant .bad { color: #dc4a3d; font-weight: 600; }
.llmquant .quiet { opacity: .7; }
.llmquant ul { margin: .4em 0 0; padding-left: 1.2em; font-size: 12px; opacity: .85; white-space: normal; }
.llmquant pre { margin: .4em 0 0; font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; word-break: normal; color: inherit; background: none; }
.llmquant li { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .llmquant th, .llmquant td { white-space: normal; padding-right: .6em; }
  .llmquant tbody th { overflow-wrap: anywhere; min-width: 7.5em; }
}
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
            parts.append(_tables(table))
        if table.footnotes:
            parts.append("<ul>" + "".join(f"<li>{note}</li>" for note in table.footnotes) + "</ul>")
        if table.code:
            parts.append("<pre>" + "\n".join(table.code) + "</pre>")
    return "\n".join(parts)


def _tables(table: Table) -> str:
    """Write a table; one with many groups of columns as several side by side, as a wide one would be cut off."""
    groups = list(table.groups())
    if sum(len(group) > 1 for group in groups) < _WIDE:
        return _table(table, [index for group in groups for index in group], table.title)
    parts = "".join(_table(table, group, "") for group in groups)
    return f'<p class="title">{table.title}</p><div class="parts">{parts}</div>'


def _whole(text: str) -> str:
    """Keep an interval, and a number with its sign before it, on one line."""
    return _UNBROKEN.sub(r'<span class="whole">\g<0></span>', text)


def _table(table: Table, chosen: Sequence[int], title: str) -> str:
    columns = [table.column(index) for index in (0, *chosen)]
    starts = {group[0] for group in table.groups() if len(group) > 1}
    classes = [
        column.align[0] + (" first" if index in starts and place > 1 else "")
        for place, (index, column) in enumerate(zip((0, *chosen), columns, strict=True))
    ]
    head = "".join(
        f'<th scope="col" class="{kind}">{"<br>".join(map(_whole, filter(None, column.name)))}</th>'
        for kind, column in zip(classes, columns, strict=True)
    )
    body = []
    for row in table.cells():
        if is_group(row):
            body.append(f'<tr><th scope="rowgroup" class="l group" colspan="{len(columns)}">{row[0].text}</th></tr>')
            continue
        line = "".join(
            f'<td class="{" ".join(filter(None, (kind, _CLASSES[row[index].tone])))}">{_whole(row[index].text)}</td>'
            for kind, index in zip(classes[1:], chosen, strict=True)
        )
        body.append(f'<tr><th scope="row" class="l">{row[0].text}</th>{line}</tr>')
    caption = f"<caption>{title}</caption>" if title and not table.is_verdict else ""
    return (
        f'<div class="part"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
