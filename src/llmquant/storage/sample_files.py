"""Files of a run's samples: one Parquet table per task, with its texts in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from llmquant.storage.atomic import file_name, make_folder
from llmquant.study.experiment import visible
from llmquant.study.reading import MOST_BYTES, read_as, stored
from llmquant.study.run import Sample

if TYPE_CHECKING:
    import pyarrow as pa

REMADE = "Delete its run's folder; the run is made again."
_SCORE = "score:"
_TASK = b"task"
_TEXTS, _COUNTS, _FLAGS = (
    ("document", "prompt", "answer", "target", "group"),
    ("occurrence", "generated"),
    ("cut", "looping", "early"),
)
_NEEDED = ("document", "prompt", "group", "occurrence")
_OTHERS = [field.name for field in fields(Sample)][3:]
# Limit for rows that are read together: each may be long.
_ROWS = 1024


def write_samples(folder: Path, task: str, samples: Sequence[Sample]) -> None:
    """Write a task's samples into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {}
    for name, kind in _types().items():
        values = [getattr(sample, name) for sample in samples]
        columns[name] = pa.array([visible(value) if isinstance(value, str) else value for value in values], kind)
    for metric in dict.fromkeys(metric for sample in samples for metric in sample.scores):
        columns[f"{_SCORE}{visible(metric)}"] = pa.array([s.scores.get(metric) for s in samples], pa.float64())
    make_folder(folder)
    pq.write_table(pa.table(columns, metadata={_TASK: task}), folder / f"{file_name(task)}.parquet", compression="zstd")


def read_samples(path: Path) -> tuple[str, list[Sample]]:
    """Return the task and its samples.

    Raises:
        DamagedError: if the file cannot be read, or contains something else.
    """
    found: list[Sample] = []
    with stored(str(path), REMADE):
        task = ""
        for batch in batches(path):
            task = (batch.schema.metadata or {}).get(_TASK, unquote(path.stem).encode()).decode()
            found += _samples(batch)
        if len({(sample.document, sample.occurrence) for sample in found}) < len(found):
            raise ValueError("a document is in it twice")
    return task, found


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows in parts.

    Raises:
        OSError: if it is not such a file, or is too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():  # a pipe would never end
        raise OSError("it is not a file")
    size = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS):
            size += batch.nbytes
            if size > MOST_BYTES:  # a small compressed file can be very large
                raise OSError(f"it holds more than {MOST_BYTES:,} bytes")
            yield batch
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _types() -> dict[str, pa.DataType]:
    """Return the types of the columns beside the scores."""
    import pyarrow as pa

    types = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_COUNTS, pa.int64()) | dict.fromkeys(_FLAGS, pa.bool_())
    return {**types, "decision_margin": pa.float64()}


def _samples(batch: pa.RecordBatch) -> list[Sample]:
    """Make samples of a table's rows; by column, in a quarter of the time, if the columns are as we write them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    metrics = [name for name in batch.schema.names if name.startswith(_SCORE)]
    types = _types() | dict.fromkeys(metrics, pa.float64())
    columns = {field.name: batch.column(field.name) for field in batch.schema if types.get(field.name) == field.type}
    if (
        len(columns) < batch.num_columns
        or any(name not in columns or columns[name].null_count for name in _NEEDED)
        or any((pc.min(columns[name]).as_py() or 0) < 0 for name in _COUNTS if name in columns)
    ):
        return list(map(_sample, batch.to_pylist()))
    nothing = [None] * len(batch)
    values = {name: columns[name].to_pylist() if name in columns else nothing for name in types}
    scores: list[dict[str, float]] = [{} for _ in nothing]
    for metric in metrics:
        for own, score in zip(scores, values[metric], strict=True):
            if score is not None:
                own[metric.removeprefix(_SCORE)] = score
    return list(map(Sample, values["document"], values["prompt"], scores, *(values[name] for name in _OTHERS)))


def _sample(row: Mapping[str, Any]) -> Sample:  # Any: a table's columns
    values = {key: value for key, value in row.items() if not key.startswith(_SCORE)}
    scores = {k.removeprefix(_SCORE): v for k, v in row.items() if k.startswith(_SCORE) and v is not None}
    return read_as(Sample, {**values, "scores": scores})
