"""A study as one self-contained HTML page: its tables, and the queries that embedders answer worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llmquant.results.report.html_table import to_html_table
from llmquant.results.report.tables import summary
from llmquant.results.report.worst_queries import STYLE, worst_queries_html
from llmquant.results.rows import Row
from llmquant.study.experiment import RunId
from llmquant.study.neutral import html_text
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 2em auto; max-width: 78em; padding: 0 1.5em; font: 14px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 20px; margin: 0; }}
.study {{ opacity: .7; font-size: 12px; margin: 0 0 1em; }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="study">study {study} · {limit} · seed {seed}{started}</p>
{tables}
{worst}
</body>
</html>
"""


def to_html_page(
    rows: list[Row], record: StudyRecord, runs: Mapping[RunId, Run], files: Callable[[Run], Path | None]
) -> str:
    """Write the page; it loads nothing from elsewhere.

    Args:
        files: gives the folder of what a run kept; ``None`` where only its record is at hand.
    """
    return _PAGE.format(
        title=html_text(record.title),
        style=STYLE,
        study=html_text(record.study_id),
        limit="all documents" if record.limit is None else html_text(f"at most {record.limit} documents a task"),
        seed=html_text(str(record.seed)),
        started=f" · {html_text(record.started_at[:16].replace('T', ' '))} UTC" if record.started_at else "",
        tables=to_html_table(summary(rows, record)),
        worst=worst_queries_html(record, runs, files),
    )
