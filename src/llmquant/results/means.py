"""Means over the tasks of a benchmark, as rows: value, paired difference, interval and verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from llmquant.results.row import Row, by_model, with_verdict
from llmquant.study.experiment import RunId, hex_digest
from llmquant.study.margins import Margins, margin_of

if TYPE_CHECKING:
    from llmquant.stats.paired import PairedDifference

SIZE = "bytes_per_document"
"""The metric that every task of retrieval has beside its main one."""

SEARCHES = "all tasks of retrieval"
"""The evaluator of a mean over all tasks of retrieval, if they are not one benchmark."""

Task: TypeAlias = tuple[str, str]
"""The key of an evaluator, and the name of one of its tasks."""


def task_of(row: Row) -> Task:
    """Return which task a row belongs to."""
    return row.evaluator_key, row.task


def mean_rows(
    rows: Sequence[Row],
    differences: Sequence[PairedDifference | None],
    benchmarks: Mapping[str, Sequence[str]],
    margins: Margins,
) -> list[Row]:
    """Make rows of each variant and benchmark of which every task is complete: its score, and bytes per document.

    A task needs exactly one main metric: a headline that has no unit and does not depend on the machine.

    Args:
        rows: of a study.
        differences: of each row, on a linear scale; ``None`` where nothing pairs.
        benchmarks: labels of a benchmark's evaluators by its own label.
    """
    paired = {id(row): difference for row, difference in zip(rows, differences, strict=True)}
    found = []
    for mine in by_model(rows):
        main, sizes = _main(mine), [row for row in mine if row.metric == SIZE]
        groups = list(_groups(main, sizes, benchmarks))
        for variant in dict.fromkeys(row.variant for row in mine):
            failed = {row.evaluator for row in mine if row.variant == variant and row.status == "failed"}
            for label, tasks in groups:
                for column in (main, sizes):
                    here = [row for row in column if row.variant == variant and task_of(row) in tasks]
                    if len(here) == len(tasks) and not failed & {row.evaluator for row in here}:
                        found.append(_mean(label, here, [paired[id(row)] for row in here], margins))
    return found


def _main(rows: Sequence[Row]) -> list[Row]:
    by_task: dict[tuple[str, Task], list[Row]] = {}
    for row in rows:
        if row.metric and row.headline and not row.unit and row.hardware is None:
            by_task.setdefault((row.variant, task_of(row)), []).append(row)
    return [found[0] for found in by_task.values() if len(found) == 1]


def _groups(
    main: Sequence[Row], sizes: Sequence[Row], benchmarks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, frozenset[Task]]]:
    """Yield the tasks of each benchmark, then all tasks of retrieval if they are not one of the benchmarks."""
    every = frozenset(map(task_of, main)).intersection(map(task_of, sizes))
    seen = set()
    for label, parts in benchmarks.items():
        here = [row for row in main if row.evaluator in parts]
        if {row.evaluator for row in here} == set(parts):
            tasks = frozenset(map(task_of, here))
            seen.add(tasks)
            yield label, tasks
    if len(every) > 1 and every not in seen:
        yield SEARCHES, every


def _mean(label: str, rows: Sequence[Row], differences: Sequence[PairedDifference | None], margins: Margins) -> Row:
    # Here, since numpy and scipy take most of a second, which a study without benchmarks should not wait for.
    from llmquant.stats.means import mean_difference, mean_stderr
    from llmquant.stats.verdicts import Judgement, judge

    first = rows[0]
    directions = {row.higher_is_better for row in rows}
    mean = Row(
        model=first.model,
        model_digest=first.model_digest,
        variant=first.variant,
        is_baseline=first.is_baseline,
        evaluator=label,
        evaluator_key=hex_digest(sorted(row.evaluator_key for row in rows))[:12],
        run_id=RunId(""),
        status="completed",
        task=f"mean of {len(rows)} tasks",
        metric=" / ".join(sorted({row.metric for row in rows})),
        mean_of=tuple(row.task for row in rows),
        value=_average([row.value for row in rows]),
        stderr=mean_stderr([row.stderr for row in rows]),
        unit=first.unit,
        n=None if any(row.n is None for row in rows) else sum(row.n or 0 for row in rows),
        higher_is_better=directions.pop() if len(directions) == 1 else None,
        baseline=first.baseline,
        baseline_value=_average([row.baseline_value for row in rows]),
        difference=_average([row.difference for row in rows]),
        no_interval=next((f"{row.task}: {row.no_interval}" for row in rows if row.no_interval), ""),
    )
    known = [difference for difference in differences if difference is not None]
    if len(known) < len(rows):
        return mean
    pooled = mean_difference(known)
    limits = {margin_of(row.metric, margins) for row in rows}
    margin = limits.pop() if len(limits) == 1 else None
    judged = judge(pooled, higher_is_better=mean.higher_is_better, margin=margin)
    if all(row.verdict == "no signal" for row in rows):
        judged = Judgement("no signal")
    no_verdict = "" if judged.verdict else f"{mean.metric} needs a margin"
    return replace(with_verdict(mean, pooled, judged, margin), no_verdict=no_verdict)


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None
