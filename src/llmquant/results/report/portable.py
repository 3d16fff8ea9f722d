"""A whole study in one JSON file: its record, runs and samples, enough to compare again anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmquant.errors import DamagedError
from llmquant.study.experiment import RunId
from llmquant.study.reading import NumberFromZero, read_as, stored
from llmquant.study.record import StudyRecord
from llmquant.study.run import SCHEMA_VERSION, Run, Sample, check_schema

_KIND = "llmquant study"


def portable_json(
    record: StudyRecord,
    runs: Mapping[RunId, Run],
    samples: Mapping[RunId, Mapping[str, Sequence[Sample]]],
    dollars: Mapping[RunId, float],
) -> dict[str, Any]:  # Any: a JSON object
    """Put a study into one JSON object.

    Args:
        record: the study; of `runs` and `samples` only its own are taken.
        runs: by id.
        samples: by run and task.
        dollars: about what runs cost, by id.
    """
    wanted = [experiment.run_id for experiment in record.experiments]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": _KIND,
        "study": record.to_json(),
        "runs": [runs[run_id].to_json() for run_id in wanted if run_id in runs],
        "samples": {
            run_id: {task: [_sample_out(sample) for sample in scored] for task, scored in samples[run_id].items()}
            for run_id in wanted
            if samples.get(run_id)
        },
        "dollars": {run_id: dollars[run_id] for run_id in wanted if run_id in dollars},
    }


def from_portable_json(
    data: Mapping[str, Any],  # Any: a JSON object
) -> tuple[StudyRecord, dict[RunId, Run], dict[RunId, dict[str, list[Sample]]], dict[RunId, float]]:
    """Read what `portable_json` made.

    Returns:
        The record, the runs by id, the samples by run and task, and the dollars by run.

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
    return file.study, {run.run_id: run for run in file.runs}, samples, dict(file.dollars)


@dataclass(frozen=True)
class _File:
    """What is in the file."""

    schema_version: int
    kind: str
    study: StudyRecord
    runs: tuple[Run, ...]
    samples: Mapping[RunId, Mapping[str, tuple[Sample, ...]]]
    dollars: Mapping[RunId, NumberFromZero]


def _sample_out(sample: Sample) -> dict[str, Any]:  # Any: a JSON object
    # JSON has no NaN and no infinity.
    scores = {metric: v if math.isfinite(v) else str(v) for metric, v in sample.scores.items()}
    return {**vars(sample), "scores": scores}
