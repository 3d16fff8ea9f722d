"""Analyses a study's samples run by run, because together they may need gigabytes."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from llmquant.errors import DamagedError
from llmquant.results.row import Row
from llmquant.results.rows import ByTask, Samples, rows
from llmquant.study.experiment import RunId
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run

if TYPE_CHECKING:
    from llmquant.results.changes import Change

_log = logging.getLogger(__name__)


def analyse(record: StudyRecord, runs: Mapping[RunId, Run], samples: Samples) -> tuple[list[Row], list[Change]]:
    """Return a study's rows and what changed in the answers.

    Args:
        samples: called once per run.
    """
    changes: list[Change] = []

    def watch(of_run: Sequence[Row], variant: ByTask, baseline: ByTask) -> None:
        if variant and baseline:
            # Here, since numpy and scipy take most of a second, which a study without samples should not wait for.
            from llmquant.results.changes import changes_of

            changes.extend(changes_of(of_run, variant, baseline))

    with _without_garbage_collection():
        found = rows(record, runs, samples, watch=watch)
    if changes:
        from llmquant.results.changes import with_differences

        changes = with_differences(changes, found)
    return found, changes


def beside(rows: Sequence[Row], samples: Samples) -> Iterator[tuple[Sequence[Row], ByTask, ByTask]]:
    """Yield the rows of each variant's run, its samples and its baseline's; damaged samples are left out.

    Args:
        rows: of variants and tasks, with the baseline's rows.
    """
    baselines: dict[tuple[str, str], RunId] = {}
    by_run: dict[RunId, list[Row]] = {}
    for row in rows:
        if row.metric and row.is_baseline:
            baselines[row.model_digest, row.evaluator_key] = row.run_id
        elif row.metric and row.run_id:
            by_run.setdefault(row.run_id, []).append(row)
    for run_id, own in by_run.items():
        baseline = baselines.get((own[0].model_digest, own[0].evaluator_key))
        if baseline is not None:
            try:
                yield own, samples(run_id), samples(baseline)
            except DamagedError as error:
                _log.warning("answers are not compared: %s", error.message)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the search for cycles, which takes 40% of the time to read millions of samples, none of them in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
