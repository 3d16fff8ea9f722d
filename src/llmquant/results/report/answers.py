"""The table of answers: documents lost and gained, answers that differ, and longer, cut and looping ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmquant.results.report.block import sample_noun
from llmquant.results.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from llmquant.results.changes import Change, ScoreChange

# With more tasks, a variant has one line for all of them.
_MOST_TASKS = 3
_FLIPS = "Lost: documents that only the baseline answers correctly; gained: that only the variant does."
_SEARCHED = "The answer to a query is its five best documents, in their order."
_ENDS = "Cut: ended at the maximum number of new tokens. Loop: ended in repetitions. In brackets: the baseline."


def answers_table(changes: Iterable[Change]) -> Table | None:
    """Make the table of a model's answers; ``None`` if no answer was kept, counted, or right or wrong."""
    shown = [c for c in changes if c.answers or c.generated or _right_or_wrong(c)]
    tasks = list(dict.fromkeys((change.evaluator, change.task) for change in shown))
    if not tasks:
        return None
    several, together = 1 < len(tasks) <= _MOST_TASKS, len(tasks) > _MOST_TASKS
    lines: dict[tuple[object, str], list[Change]] = {}
    for task in tasks:
        for change in shown:
            if (change.evaluator, change.task) == task:
                lines.setdefault((None if together else task, change.variant), []).append(change)
    columns = [
        Column(("variant",), align="left"),
        *([Column(("task",), align="left")] if several else []),
        flips := Column(("lost /", "gained")),
        Column(("answers", "changed %")),
        Column(("tokens",)),
        ends := Column(("cut %",)),
        Column(("loop %",)),
    ]
    rows = tuple(
        (
            Cell(variant),
            *([Cell(own[0].task)] if several else []),
            *_flips(own),
            *_ends(own),
        )
        for (_, variant), own in lines.items()
    )
    title = f"Answers to {tasks[0][1]}" if len(tasks) == 1 else f"Answers to {len(tasks)} tasks"
    table = Table(title, tuple(columns), rows).without_empty_columns()
    searched = [_SEARCHED] if any(map(_is_search, shown)) else []
    notes = [note for column, note in ((flips, _FLIPS), (ends, _ENDS)) if column in table.columns]
    return replace(table, footnotes=(*notes, *searched))


def _right_or_wrong(change: Change) -> ScoreChange | None:
    """Return the first metric of right and wrong; a search has none, although its scores may all happen to be 0."""
    return None if _is_search(change) else next((score for score in change.scores if score.binary), None)


def _is_search(change: Change) -> bool:
    return sample_noun(change.evaluator) == "query"


def _flips(changes: Sequence[Change]) -> list[Cell]:
    """Count over all tasks."""
    flips = [score for score in map(_right_or_wrong, changes) if score is not None]
    answers = [(change.answers.value, 0.0, change.answers.n) for change in changes if change.answers is not None]
    return [
        Cell(f"{sum(f.lost.count for f in flips):,} / {sum(f.gained.count for f in flips):,}" if flips else "–"),
        Cell(f"{100 * _means(answers)[0]:.1f}" if answers else "–"),
    ]


def _ends(changes: Sequence[Change]) -> list[Cell]:
    """Average over all documents."""
    lengths = [(c.generated.mean, c.generated.baseline_mean, c.documents) for c in changes if c.generated is not None]
    tokens, before = _means(lengths) if lengths else (0.0, 0.0)
    cells = [Cell(f"{tokens:,.0f}" + (f" ({tokens / before:.2f}x)" if before else "") if lengths else "–")]
    for shares in ([(c.cut, c.documents) for c in changes], [(c.looping, c.documents) for c in changes]):
        known = [(share.value, share.baseline_value, n) for share, n in shares if share is not None]
        value, before = _means(known) if known else (0.0, 0.0)
        cells.append(Cell(f"{100 * value:.1f} ({100 * before:.1f})" if known else "–"))
    return cells


def _means(values: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """Return the means of the variant's and of the baseline's values, weighted by documents."""
    total = sum(n for *_, n in values)
    return sum(n * value for value, _, n in values) / total, sum(n * before for _, before, n in values) / total
