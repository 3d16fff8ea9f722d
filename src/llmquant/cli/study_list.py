"""The studies of a store as tables."""

from __future__ import annotations

from llmquant.errors import OptionError, StoreError
from llmquant.results.report.names import ShortNames
from llmquant.results.report.table import Column, Table
from llmquant.results.rows import label, variants
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.counting import counted, some
from llmquant.study.record import StudyRecord


def study_tables(store: Store) -> list[Table]:
    """Build a table with one row per study, the newest last, and a list of what each compares and measures.

    A study that cannot be read says so.
    """
    columns = tuple(Column((name,), align="left") for name in ("study", "started (UTC)", "state"))
    rows, compared = [], []
    for study in store.studies():
        try:
            record = store.read_study(study, StudyRecord.from_json)
        except StoreError as error:
            rows.append((study, "–", error.message))
            continue
        started = record.started_at[:16].replace("T", " ") or "–"
        rows.append((study, started, _state(store, record)))
        labels = [label(record, variant) for variant in variants(record)]
        short = ShortNames.of(labels)
        evaluators = (_short(experiment.evaluator.label) for experiment in record.experiments)
        compared.append(
            f"{study}: {some(record.model_names.values())}; variants {some(map(short.name, labels))}; "
            f"evaluators {some(evaluators)}"
        )
    tables = [Table(f"{counted(len(rows), 'study')} in {store.root}", columns, tuple(rows))]
    return [*tables, Table("compared and measured", footnotes=tuple(compared))] if compared else tables


def _state(store: Store, record: StudyRecord) -> str:
    runs = [store.readable(experiment.run_id) for experiment in record.experiments]
    failed = sum(run is not None and run.status == "failed" for run in runs)
    done = sum(run is not None for run in runs) - failed
    return f"{done} of {len(runs)} done" + (f", {failed} failed" if failed else "")


def _short(evaluator: str) -> str:
    """Leave out the options of an evaluator's call."""
    try:
        call = Call.parse(evaluator)
    except OptionError:  # a label need not be a call
        return evaluator
    return str(Call(call.name, call.args))
