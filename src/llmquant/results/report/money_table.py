"""The table of what a study cost, where its executor is paid."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.results.report.table import Table
from llmquant.results.rows import Row
from llmquant.study.experiment import RunId


def money_table(rows: Sequence[Row]) -> Table | None:
    """Make the table, a line a run; ``None`` where nothing was paid for."""
    paid: dict[RunId, list[Row]] = {}
    for row in rows:
        if row.dollars is not None:
            paid.setdefault(row.run_id, []).append(row)
    if not paid:
        return None
    lines = []
    for found in paid.values():
        first = found[0]
        dollars, samples = first.dollars or 0.0, _samples(found)
        thousand = _dollars(1000 * dollars / samples) if samples else "–"
        lines.append((" · ".join([first.variant, first.evaluator]), _dollars(dollars), thousand))
    total = sum(found[0].dollars or 0.0 for found in paid.values())
    footnote = (
        f"About ${total:.2f} in all: an estimate from how long the machines ran and their rates. What starting and "
        "loading took is shared out by how long the runs took."
    )
    return Table("Paid", ("run", "dollars", "dollars a thousand samples"), tuple(lines), (footnote,))


def _dollars(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _samples(rows: Sequence[Row]) -> int:
    """Count what a run scored; 0 for one that measured hardware."""
    by_task: dict[str, int] = {}
    for row in rows:
        if row.hardware is None and row.n is not None:
            by_task[row.task] = max(row.n, by_task.get(row.task, 0))
    return sum(by_task.values())
