"""The report as Markdown: what the HTML page has, without its charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmquant.results.changes import DocumentChange
from llmquant.results.report.flips import answers_of
from llmquant.results.report.protocol import again, protocol_table, study_toml, versions
from llmquant.results.report.summary import answer_first, tables
from llmquant.results.report.table import Table
from llmquant.results.report.text import to_markdown
from llmquant.study.neutral import markdown_text, printable

if TYPE_CHECKING:
    from llmquant.results.comparison import Comparison
    from llmquant.results.recommend import Limits

_FLIPS = 3
_ANSWER = 160


def to_markdown_report(
    found: Comparison, limits: Limits | None = None, max_loss: float | str | Sequence[float | str] | None = None
) -> str:
    """Write the verdict and the recommendation, the protocol, the tables, changed answers, and how to run it again."""
    shown = [protocol_table(found.record, found.runs), *tables(found, limits, max_loss)]
    flips = _flips(found.flipped(limit=_FLIPS))
    shown = [*answer_first(shown), *([flips] if flips.rows else [])]
    # Indented, so that no text in it can end the block.
    toml = study_toml(found.record)
    code = "\n".join(f"    {printable(line)}" for line in toml.splitlines())
    said = markdown_text(versions(found.runs.values()))
    end = f"### Make it again\n\n{markdown_text(again(toml))}\n\n{code}\n\nVersions: {said}.\n"
    return f"{to_markdown(shown)}\n{end}"


def _flips(changes: Sequence[DocumentChange]) -> Table:
    lines = tuple(
        (
            f"{one.variant} · {one.task}",
            f"{one.metric} {one.baseline_score:.3g} → {one.score:.3g}",
            *(_short(text) for text in answers_of(one)),
        )
        for one in changes
        if one.answer is not None and one.baseline_answer is not None
    )
    return Table("Documents that changed", ("of", "score", "expected", "baseline", "variant"), lines)


def _short(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= _ANSWER else text[: _ANSWER - 1] + "…"
