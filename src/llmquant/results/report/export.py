"""A study as data: rows for spreadsheets and data frames, and one JSON file from which it is compared again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import DamagedError, MissingDependencyError
from llmquant.results.analysis import beside
from llmquant.results.changes import DocumentChange, document_changes, with_prompts
from llmquant.results.costs import PASSES
from llmquant.results.row import SAME_AS_PERPLEXITY, Row
from llmquant.study.experiment import RunId
from llmquant.study.neutral import csv_cell
from llmquant.study.reading import NumberFromZero, read_as, stored
from llmquant.study.record import StudyRecord
from llmquant.study.run import SCHEMA_VERSION, Run, Sample, check_schema, finite_json

if TYPE_CHECKING:
    import pandas as pd

_KIND = "llmquant study"
_WHAT = ("variant", "task", "metric")
_FOUND = (
    *("value", "stderr", "n", "unit"),
    *("difference", "difference_low", "difference_high", "ratio", "ratio_low", "ratio_high", "verdict", "status"),
)
# Parts of another metric.
_DETAILS = {*SAME_AS_PERPLEXITY, *PASSES, "weights_parameters_bytes", "weights_quantization_state_bytes"}
_DETAILS |= {"weights_buffers_bytes", "checkpoint_disk_bytes", "load_peak_bytes", "kv_cache_bytes_per_token"}
_Value = None | bool | int | float | str


def portable_json(
    record: StudyRecord,
    runs: Mapping[RunId, Run],
    samples: Mapping[RunId, Mapping[str, Sequence[Sample]]],
    dollars: Mapping[RunId, float],
    prompts: Callable[[Collection[str]], Mapping[str, str]] = lambda hashes: {},
) -> dict[str, Any]:  # Any: a JSON object
    """Put a study into one JSON object.

    Args:
        record: the study; of `runs` and `samples` only its own are taken.
        runs: by id.
        samples: by run and task.
        dollars: about what runs cost, by id.
        prompts: returns texts of prompts by hash.
    """
    wanted = [experiment.run_id for experiment in record.experiments]
    hashes = {s.prompt for run_id in wanted for scored in samples.get(run_id, {}).values() for s in scored}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": _KIND,
        "study": record.to_json(),
        "runs": [runs[run_id].to_json() for run_id in wanted if run_id in runs],
        "samples": {
            run_id: {task: [finite_json(vars(sample)) for sample in scored] for task, scored in samples[run_id].items()}
            for run_id in wanted
            if samples.get(run_id)
        },
        "dollars": {run_id: dollars[run_id] for run_id in wanted if run_id in dollars},
        "prompts": dict(prompts(hashes)),
    }


def from_portable_json(
    data: Mapping[str, Any],  # Any: a JSON object
) -> tuple[StudyRecord, dict[RunId, Run], dict[RunId, dict[str, list[Sample]]], dict[RunId, float], Mapping[str, str]]:
    """Read what `portable_json` made.

    Returns:
        The record, the runs by id, the samples by run and task, the dollars by run, and the prompts by hash.

    Raises:
        DamagedError: if it is something else.
        StoreError: if a newer version wrote it.
    """
    check_schema(data, "a study")
    if data.get("kind") != _KIND:
        raise DamagedError("this JSON is not a whole study", hint="Write one with Comparison.save_json or -f json.")
    with stored("a study"):
        file = read_as(_File, data)
    samples = {run_id: {task: list(scored) for task, scored in tasks.items()} for run_id, tasks in file.samples.items()}
    return file.study, {run.run_id: run for run in file.runs}, samples, dict(file.dollars), file.prompts


@dataclass(frozen=True)
class _File:
    """The content of the file."""

    schema_version: int
    kind: str
    study: StudyRecord
    runs: tuple[Run, ...]
    samples: Mapping[RunId, Mapping[str, tuple[Sample, ...]]]
    dollars: Mapping[RunId, NumberFromZero]
    prompts: Mapping[str, str] = field(default_factory=dict)


def _flat(rows: Sequence[Row]) -> list[dict[str, _Value]]:
    """Return one record per row: the fields of `Row`, and one column per condition, such as ``at_prompt_tokens``."""
    conditions = sorted({f"at_{key}" for row in rows for key in row.at})
    found = []
    for row in rows:
        record: dict[str, _Value] = dict.fromkeys(_columns(conditions))
        for name, value in vars(row).items():
            if name in record:
                record[name] = "; ".join(value) if isinstance(value, tuple) else value
        record |= {f"at_{key}": value for key, value in row.at.items()}
        found.append(record)
    return found


def _columns(conditions: Sequence[str] = ()) -> list[str]:
    """List the columns, in order."""
    names = [field.name for field in fields(Row)]
    place = names.index("at")
    return [*names[:place], *conditions, *names[place + 1 :]]


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows as comma-separated values; a missing value is an empty field, and no text is a formula."""
    records = _flat(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for line in (records[0] if records else _columns(), *(record.values() for record in records)):
        writer.writerow([csv_cell(value) if isinstance(value, str) else value for value in line])
    return stream.getvalue()


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a tidy frame: one line per row, one column per field, conditions as ``at_...``; gaps are missing values.

    Raises:
        MissingDependencyError: if pandas is not installed.
    """
    records = _flat(rows)
    return frame_of(records, list(records[0]) if records else _columns())


def narrow_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a frame to read: the main metrics; the model and the conditions only where they differ.

    Raises:
        MissingDependencyError: if pandas is not installed.
    """
    main = (row for row in rows if row.headline and row.metric not in _DETAILS and not row.metric.endswith("_p95"))
    frame = to_frame([replace(row, task=row.task or row.evaluator) for row in main])
    several = {str(name) for name in frame if frame[name].nunique() > 1}
    conditions = [name for name in map(str, frame) if name.startswith("at_") and name in several]
    return frame[[*(["model"] if "model" in several else []), *_WHAT, *conditions, *_FOUND]]


def samples_frame(
    rows: Sequence[Row],
    samples: Callable[[RunId], Mapping[str, Sequence[Sample]]],
    prompts: Callable[[Collection[str]], Mapping[str, str]],
) -> pd.DataFrame:
    """Return a frame with one line per variant, document and metric, beside the baseline's.

    Raises:
        MissingDependencyError: if pandas is not installed.
    """
    found = [one for run in beside(rows, samples) for one in document_changes(*run)]
    columns = [field.name for field in fields(DocumentChange)]
    frame = frame_of([vars(one) for one in with_prompts(found, prompts)], columns)
    return frame.astype(dict.fromkeys(("baseline_score", "score", "change"), "Float64"))


def frame_of(records: Sequence[Mapping[str, _Value]], columns: list[str]) -> pd.DataFrame:
    """Return a frame with one line per record; gaps are missing values.

    Raises:
        MissingDependencyError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "a data frame requires pandas, which is not installed", hint='Run: pip install "llmquant[frame]"'
        ) from error
    # A column of None alone has no type to guess; pandas' own missing value lets numbers be numbers.
    return pd.DataFrame.from_records(records, columns=columns).convert_dtypes()


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write a file with one line per row, the columns of the CSV, and the types of `Row`'s fields."""
    import pyarrow as pa
    from pyarrow import parquet

    records = _flat(rows)
    types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    declared = {field.name: str(field.type).partition(" ")[0] for field in fields(Row)}
    schema = []
    for name in list(records[0]) if records else _columns():
        values = [record[name] for record in records if record[name] is not None]
        # Conditions have no declared type.
        kind = declared.get(name) or ("float" if all(isinstance(value, int | float) for value in values) else "str")
        schema.append(pa.field(name, types.get(kind, pa.string())))
        if kind not in types:
            for record in records:
                record[name] = None if record[name] is None else str(record[name])
    parquet.write_table(pa.Table.from_pylist(records, schema=pa.schema(schema)), path)
