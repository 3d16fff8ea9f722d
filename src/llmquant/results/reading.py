"""Reads a study's runs from a store."""

from __future__ import annotations

from llmquant.errors import StoreError
from llmquant.results.rows import label
from llmquant.storage.store import Store
from llmquant.study.experiment import RunId
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run


def read_runs(record: StudyRecord, store: Store) -> tuple[dict[RunId, Run], list[str]]:
    """Read a study's runs, and note the runs that cannot be read."""
    found: dict[RunId, Run] = {}
    notes: list[str] = []
    for experiment in record.experiments:
        try:
            run = store.run(experiment.run_id)
        except StoreError as error:
            name = f"{label(record, experiment.variant)} · {experiment.evaluator.label}"
            notes.append(f"{name} is missing, as its run cannot be read: {error.message}. {error.hint}")
        else:
            if run is not None:
                found[run.run_id] = run
    return found, notes
