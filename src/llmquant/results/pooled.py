"""One verdict per variant over all its tasks.

Each task counts the same, with one metric. The differences, counted as gains, are in points if every metric is a share
with the same margin, else in margins: a loss of 1 is as large as the task's margin. Tasks without signal or pairs are
left out and named. A variant is not judged if a run of its own or of its baseline did not finish, or a value is not a
finite number. The interval is about other documents of the same tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmquant.results.means import Task, task_of
from llmquant.results.row import Row, by_model, with_verdict
from llmquant.study.experiment import RunId, hex_digest
from llmquant.study.margins import Margins, is_share, margin_of, points
from llmquant.study.run import GROUP

if TYPE_CHECKING:
    from llmquant.stats.paired import PairedDifference

ALL_TASKS = "all tasks"

# Of a task's metrics, the first of these counts, else its first one; the others repeat what it says.
_PREFERRED = ("acc_norm", "f1", "acc", "exact_match", "perplexity", "word_perplexity")

_AT_K = re.compile(r"_at_(\d+)$")
_SHOWN = {"f1": "F1", "em": "EM"}


def pooled_rows(rows: Sequence[Row], differences: Sequence[PairedDifference | None], margins: Margins) -> list[Row]:
    """Make one row per model and variant.

    Args:
        rows: of a study, judged.
        differences: of each row; ``None`` where nothing pairs. Those of perplexity are logarithms of ratios.
    """
    by_id = {id(row): difference for row, difference in zip(rows, differences, strict=True)}
    found = []
    for mine in by_model(rows):
        counted = _counted(mine, by_id, margins)
        labels = dict.fromkeys(row.variant for row in mine if not row.is_baseline)
        unfinished = [row for row in mine if row.is_baseline and row.status != "completed"]
        own = ([row for row in mine if row.variant == label] for label in labels)
        pooled = [_pooled(each, unfinished, counted, by_id, margins) for each in own]
        found += _one_family([row for row in pooled if row is not None])
    return found


def _counted(
    rows: Sequence[Row], differences: Mapping[int, PairedDifference | None], margins: Margins
) -> Mapping[Task, str]:
    """Choose the metric that counts for each task: one that pairs, if any does; a task without a margin does not count.

    MRPC has an F1 of all documents together, which has no interval, and an accuracy, which has one.
    """
    by_task: dict[Task, list[str]] = {}
    paired: dict[Task, list[str]] = {}
    for row in filter(is_quality, rows):
        if margin_of(row.metric, margins) is not None:
            by_task.setdefault(task_of(row), []).append(row.metric)
            if differences[id(row)] is not None:
                paired.setdefault(task_of(row), []).append(row.metric)
    return {
        task: next((name for name in _PREFERRED if name in metrics), metrics[0])
        for task, metrics in (by_task | paired).items()
    }


def is_quality(row: Row) -> bool:
    """Return whether a row says how good a variant is at a task."""
    return bool(row.metric) and row.headline and row.hardware is None and row.higher_is_better is not None


def _pooled(
    rows: Sequence[Row],
    unfinished: Sequence[Row],
    counted: Mapping[Task, str],
    differences: Mapping[int, PairedDifference | None],
    margins: Margins,
) -> Row | None:
    # A group's documents are those of its tasks, which count.
    parts = [row for row in rows if counted.get(task_of(row)) == row.metric and row.no_interval != GROUP]
    finite = [math.isfinite(row.value or 0.0) and math.isfinite(row.baseline_value or 0.0) for row in parts]
    lacking = {
        "did not finish": {row.evaluator for row in rows if row.status != "completed" and _counts(row, counted)},
        "of the baseline did not finish": {row.evaluator for row in unfinished if _counts(row, counted)},
        "is not a finite number": {names(row)[0] for row, known in zip(parts, finite, strict=True) if not known},
    }
    reasons = [f"{', '.join(sorted(labels))} {what}" for what, labels in lacking.items() if labels]
    if not parts and not reasons:
        return None
    used = [row for row in parts if row.verdict not in (None, "no signal") and differences[id(row)] is not None]
    left_out = [f"{row.task} ({row.verdict or row.no_interval or row.no_verdict})" for row in parts if row not in used]
    unknown = [f"{names(row)[0]} ({row.no_interval or row.no_verdict})" for row in parts if row.verdict is None]
    unknown += [f"{task} {counted[key, task]} (not run)" for key, task in counted.keys() - set(map(task_of, rows))]
    first = rows[0]
    tasks = [row.task for row in used]
    named = tuple(names(row)[tasks.count(row.task) > 1] for row in used)
    row = Row(
        model=first.model,
        model_digest=first.model_digest,
        variant=first.variant,
        is_baseline=False,
        evaluator=ALL_TASKS,
        evaluator_key=hex_digest(sorted(row.evaluator_key for row in used))[:12],
        run_id=RunId(""),
        status="completed",
        task=" and ".join(named) if len(named) < 3 else f"mean of {len(named)} tasks",
        mean_of=named,
        metric="difference",
        higher_is_better=True,
        baseline=first.baseline,
        evaluator_note=f"without {', '.join(left_out)}" if left_out else "",
        pooled=True,
        no_interval=", ".join(sorted(unknown)),
    )
    if reasons:
        return replace(row, no_verdict=" and ".join(reasons))
    if not used:
        silent = all(row.verdict == "no signal" for row in parts)
        reason = f"no task can be compared: {', '.join(left_out)}"
        return replace(row, verdict="no signal") if silent else replace(row, no_verdict=reason)
    return _judged(row, used, [differences[id(row)] for row in used], margins)


def names(row: Row) -> tuple[str, str]:
    """Name a row's metric by its task, and by its evaluator if several have a task of this name."""
    by_task, by_evaluator = (
        name if name == row.metric else f"{name} {row.metric}" for name in (row.task, row.evaluator)
    )
    return by_task, by_evaluator


def shown_name(name: str) -> str:
    """Write a metric's name, with or without its task, as tables do: ``coqa F1``, ``NDCG@5``."""
    task, space, metric = name.rpartition(" ")
    metric = _SHOWN.get(metric) or _AT_K.sub(r"@\1", metric).replace("ndcg", "NDCG").replace("_", " ")
    return f"{task}{space}{metric}"


def margin_text(rows: Sequence[Row]) -> str:
    """Write the margins that decide rows: ``2 points or 2% of perplexity``."""
    texts: dict[str, None] = {}
    for row in rows:
        if row.margin is not None and is_share(row.metric):
            texts[points(100 * row.margin)] = None
        elif row.margin is not None and "perplexity" in row.metric:
            texts[f"{100 * row.margin:g}% of perplexity"] = None
        elif row.margin is not None:
            texts[f"{row.margin:g} of {row.metric}"] = None
    return " or ".join(texts)


def pooled_margin(rows: Sequence[Row]) -> str:
    """Write the margins of the tasks that a model's pooled rows are over."""
    counted = {name for row in rows if row.pooled for name in row.mean_of}
    return margin_text([row for row in rows if row.margin is not None and not counted.isdisjoint(names(row))])


def common_unit(rows: Sequence[Row]) -> tuple[str, list[float]]:
    """Return a unit for the differences of pooled rows, and the factor of each row: points are margins too.

    Variants whose rows are over different tasks may have different units.
    """
    if len({row.unit for row in rows}) == 1:
        return rows[0].unit, [1.0] * len(rows)
    return "margins", [1 / row.margin if row.unit == "points" and row.margin else 1.0 for row in rows]


def _counts(row: Row, counted: Mapping[Task, str]) -> bool:
    return any(key == row.evaluator_key for key, _ in counted)


def _judged(
    row: Row,
    parts: Sequence[Row],
    differences: Sequence[PairedDifference | None],
    margins: Margins,
) -> Row:
    from llmquant.stats.means import mean_difference, scaled
    from llmquant.stats.verdicts import judge

    shares = {part.margin if is_share(part.metric) else None for part in parts}
    in_points = len(shares) == 1 and None not in shares
    totals = [part.population for part in parts]
    gains = []
    for part, difference in zip(parts, differences, strict=True):
        margin = margin_of(part.metric, margins)
        if difference is None or margin is None or not (in_points or margin):
            return replace(row, no_verdict=f"{part.metric} has a margin of 0, which no difference can be counted in")
        sign = 1 if part.higher_is_better else -1
        gains.append(scaled(difference, sign * (100.0 if in_points else 1 / margin)))
    pooled = gains[0] if len(gains) == 1 else mean_difference(gains)
    margin = 100 * (parts[0].margin or 0.0) if in_points else 1.0
    judged = judge(pooled, higher_is_better=True, margin=margin)
    population = None if None in totals else sum(total or 0 for total in totals)
    row = replace(row, unit="points" if in_points else "margins", n=pooled.n, population=population)
    return with_verdict(row, pooled, judged, margin)


def _one_family(rows: Sequence[Row]) -> list[Row]:
    """Adjust the p-values of a model's variants for their number."""
    from llmquant.stats.significance import holm

    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
