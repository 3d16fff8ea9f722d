"""A whole study in one JSON file: its record, runs and samples, enough to compare again anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmquant.comparison import StudyRecord
from llmquant.errors import StoreError
from llmquant.experiment import RunId
from llmquant.run import SCHEMA_VERSION, Run, Sample, check_schema

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
        StoreError: if it is something else, damaged, or written by a newer version.
    """
    check_schema(data, "a study")
    if data.get("kind") != _KIND:
        raise StoreError("this JSON is not a whole study", hint="Write one with Comparison.save_json or -f json.")
    try:
        record = StudyRecord.from_json(data["study"])
        runs = {run.run_id: run for run in map(Run.from_json, data["runs"])}
        samples = {
            RunId(run_id): {task: [_sample_in(sample) for sample in scored] for task, scored in tasks.items()}
            for run_id, tasks in data["samples"].items()
        }
        dollars = {RunId(run_id): float(value) for run_id, value in data["dollars"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"a study cannot be read: {error!r}") from error
    return record, runs, samples, dollars


def _sample_out(sample: Sample) -> dict[str, Any]:  # Any: a JSON object
    # JSON has no NaN and no infinity.
    scores = {metric: v if math.isfinite(v) else str(v) for metric, v in sample.scores.items()}
    return {**vars(sample), "scores": scores}


def _sample_in(data: Mapping[str, Any]) -> Sample:  # Any: a JSON object
    return Sample(**{**data, "scores": {metric: float(value) for metric, value in data["scores"].items()}})
