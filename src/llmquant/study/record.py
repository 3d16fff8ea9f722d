"""A study as it was planned, and as its folder in a store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from llmquant.study.experiment import Experiment, VectorForm
from llmquant.study.reading import Count, Positive, read_as, stored
from llmquant.study.run import SCHEMA_VERSION, check_schema


@dataclass(frozen=True)
class StudyRecord:
    """A study as it was planned: what a comparison needs besides the runs.

    Attributes:
        title: for people.
        experiments: all that the study wants, in order.
        baselines: label of the baseline's quantizer, by the model's digest.
        notes: what a reader of its tables must know, such as a baseline that was added.
        limit: documents a task; ``None`` is all.
        started_at: ISO 8601, UTC: runs that are older were reused; ``""`` where it is not known.
    """

    study_id: str
    title: str
    experiments: tuple[Experiment, ...]
    baselines: Mapping[str, str]
    notes: tuple[str, ...] = ()
    limit: Positive | None = None
    seed: Count = 0
    started_at: str = ""

    @cached_property
    def forms(self) -> Mapping[str, tuple[VectorForm, ...]]:
        """Return the forms of vectors by the model's digest, the baseline's first; embedders only."""
        found: dict[str, dict[VectorForm, None]] = {}
        for experiment in self.experiments:
            if experiment.variant.vectors is not None:
                found.setdefault(experiment.variant.model.digest, {})[experiment.variant.vectors] = None
        return {digest: tuple(forms) for digest, forms in found.items()}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the content of ``study.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "experiments": [experiment.to_json() for experiment in self.experiments],
            "baselines": dict(self.baselines),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudyRecord:  # Any: a JSON object
        """Read the content of ``study.json``.

        Raises:
            DamagedError: if it is not a study.
            StoreError: if it was written by a newer version.
        """
        check_schema(data, "a study")
        with stored("a study"):
            return read_as(cls, data, beside={"schema_version": Positive})
