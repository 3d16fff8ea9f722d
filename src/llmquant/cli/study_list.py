"""The studies of a store as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.errors import StoreError
from llmquant.results.report.table import Column, Table
from llmquant.results.rows import label, variants
from llmquant.study.record import StudyRecord

if TYPE_CHECKING:
    from llmquant.storage.store import Store


def study_table(store: Store) -> Table:
    """Build a table with one row per study, the newest last; a study that cannot be read says so."""
    names = ("study", "started (UTC)", "models", "variants", "evaluators", "state")
    columns = tuple(Column((name,), align="left") for name in names)
    return Table(f"studies in {store.root}", columns, tuple(_row(store, name) for name in store.studies()))


def _row(store: Store, study_id: str) -> tuple[str, ...]:
    try:
        record = store.read_study(study_id, StudyRecord.from_json)
    except StoreError as error:
        return (study_id, "–", "–", "–", "–", error.message)
    runs = [store.readable(experiment.run_id) for experiment in record.experiments]
    failed = sum(run is not None and run.status == "failed" for run in runs)
    done = sum(run is not None for run in runs) - failed
    return (
        study_id,
        record.started_at[:16].replace("T", " ") or "–",
        record.title,
        ", ".join(dict.fromkeys(label(record, variant) for variant in variants(record))),
        ", ".join(dict.fromkeys(experiment.evaluator.label for experiment in record.experiments)),
        f"{done} of {len(runs)} done" + (f", {failed} failed" if failed else ""),
    )
