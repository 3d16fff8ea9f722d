"""A study as one self-contained page: no script, nothing loaded from elsewhere, readable offline and on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.results.pareto import ParetoPoint, pareto
from llmquant.results.recommend import Limits, Recommendation
from llmquant.results.report.block import Block, blocks
from llmquant.results.report.curves import divergence_charts, pareto_charts
from llmquant.results.report.flips import flips_html
from llmquant.results.report.html import STYLE, to_html_parts
from llmquant.results.report.names import ShortNames
from llmquant.results.report.protocol import again, protocol_table, study_toml, versions
from llmquant.results.report.strips import cost_charts, forests, pooled_forest
from llmquant.results.report.summary import heading, study_line, summary
from llmquant.results.report.table import Table
from llmquant.results.report.worst_queries import STYLE as WORST_STYLE
from llmquant.results.report.worst_queries import worst_queries_html
from llmquant.study.neutral import html_lines, html_text
from llmquant.study.run import Run

if TYPE_CHECKING:
    from llmquant.results.comparison import Comparison

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main class="llmquant">
<h1>{title}</h1>
<p class="study">{study}</p>
{body}
</main>
</body>
</html>
"""
# Documents per variant and task.
_FLIPS = 5
# More of them are shown on a click.
_REASONS = 6
_COSTS = ("Memory", "Speed", "Other measurements")
_ENDS = ("Failed", "Not run", "Notes")


def to_html_page(
    found: Comparison,
    kept: Callable[[Run], Path | None],
    limits: Limits | None = None,
    max_loss: float | str | Sequence[float | str] | None = None,
) -> str:
    """Write the page: verdicts first, then how they came about, charts, tables, failures and how to make it again.

    Args:
        limits: what a recommended variant may need.
        max_loss: the largest acceptable loss of a recommended variant.
        kept: gives the folder of what a run kept; ``None`` if only the record is available.
    """
    rows, record = found.rows(), found.record
    tables = summary(rows, record, changes=found.changes())
    short = ShortNames.of(row.variant for row in rows)
    rows = [replace(row, variant=short.name(row.variant)) for row in rows]
    grouped = blocks(rows)
    points = pareto(rows)
    parts = [
        _answer(grouped, tables, found.recommendations(limits, max_loss), short),
        _box("Protocol: how this was measured", to_html_parts([replace(protocol_table(record, found.runs), title="")])),
        *(_model(block, tables, [p for p in points if p.model == block.model]) for block in grouped),
        *(_section(table.title, table) for table in tables if not table.heading and table.title not in _ENDS),
        flips_html(found.flipped(limit=_FLIPS)),
        worst_queries_html(record, found.runs, kept),
        *(_section(table.title, table) for table in tables if table.title in _ENDS),
        _reproduce(found),
    ]
    css = files("llmquant.results.report").joinpath("page.css").read_text(encoding="utf-8")
    return _PAGE.format(
        title=html_text(", ".join(dict.fromkeys(block.model for block in grouped)) or record.title),
        style=STYLE + css + WORST_STYLE,
        study=html_text(study_line(record)),
        body="\n".join(filter(None, parts)),
    )


def _answer(
    grouped: Sequence[Block], tables: Sequence[Table], advice: Sequence[Recommendation], short: ShortNames
) -> str:
    """Write the verdicts as sentences, each with its table and chart, and what to ship."""
    verdicts = [(block, t) for block in grouped for t in tables if t.is_verdict and t.heading == heading(block)]
    parts = []
    for block, table in verdicts:
        model = f"<h3>{html_text(table.heading)}</h3>" if len(verdicts) > 1 else ""
        body = to_html_parts([replace(table, title="", heading="")])
        ship = "".join(_advice(each, short) for each in advice if each.model == block.model)
        parts.append(
            f'<section class="answer">{model}<p class="verdict">{html_text(table.title)}</p>'
            f'<div class="charts"><div>{body}</div>{pooled_forest(block)}</div>{ship}</section>'
        )
    return "".join(parts)


def _advice(advice: Recommendation, short: ShortNames) -> str:
    first, *reasons = (html_text(short.text(sentence)) for sentence in advice.sentences())
    second = f"<p>{reasons.pop(0)}</p>" if advice.runner_up is not None else ""
    items = "<ul>" + "".join(f"<li>{reason}</li>" for reason in reasons) + "</ul>"
    if len(reasons) > _REASONS:
        items = f"<details><summary>Why not the other {len(advice.ruled_out)}</summary>{items}</details>"
    lines = "\n".join(map(html_text, advice.use))
    use = f"<pre>{lines}</pre>" if lines else ""
    return f'<h3>Recommendation</h3><p class="ship">{first}</p>{second}{items}{use}'


_KEYS = {
    "forests": "Dots are estimates and lines 95% intervals; a loss above the margin is shaded.",
    "pareto": "No variant beats one with a filled dot in quality, memory and latency at once; the dashed line is the "
    "front of its plot. Hovering shows the probability of being on the front.",
    "divergence": "A small divergence does not show that a variant is no worse: near the baseline it does not rank "
    "variants by their quality.",
}


def _model(block: Block, tables: Sequence[Table], points: Sequence[ParetoPoint]) -> str:
    """Write a model's tables with the charts of the same numbers."""
    own = [replace(table, heading="") for table in tables if table.heading == heading(block) and not table.is_verdict]
    costs = [table for table in own if table.title in _COSTS]
    quality = [table for table in own if table.title == "Quality"]
    answers = [table for table in own if table.title.startswith("Answers")]
    fidelity = [table for table in own if table.title.startswith("Fidelity")]
    rest = [table for table in own if table not in (*quality, *answers, *fidelity, *costs)]
    parts = [
        to_html_parts(quality),
        _charts(forests(block), "forests"),
        _charts(pareto_charts(block, points), "pareto"),
        to_html_parts(answers),
        to_html_parts(fidelity),
        _charts(divergence_charts(block), "divergence"),
        to_html_parts(costs),
        _charts(cost_charts(block)),
        to_html_parts(rest),
    ]
    body = "\n".join(filter(None, parts))
    return f"<h2>{html_text(heading(block))}</h2>{body}" if body else ""


def _charts(charts: Sequence[str], key: str = "") -> str:
    note = f'<p class="key">{_KEYS[key]}</p>' if key else ""
    return f'{note}<div class="charts">{"".join(charts)}</div>' if charts else ""


def _section(title: str, table: Table) -> str:
    body = to_html_parts([replace(table, title="")])
    return f"<section><h2>{html_text(title)}</h2>{body}</section>"


def _box(title: str, body: str) -> str:
    return f'<details class="box" open><summary>{html_text(title)}</summary>{body}</details>'


def _reproduce(found: Comparison) -> str:
    toml = study_toml(found.record)
    how = f"{html_text(again(toml))}</p>" + (f"<pre>{html_lines(toml)}</pre>" if toml else "")
    return (
        f"<section><h2>Make it again</h2><p>{how}<p>Versions: {html_text(versions(found.runs.values()))}.</p></section>"
    )
