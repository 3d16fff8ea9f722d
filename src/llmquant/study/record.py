"""A planned study, and its record in a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from llmquant.study.experiment import Experiment, VectorForm
from llmquant.study.margins import DEFAULT
from llmquant.study.model_names import model_names
from llmquant.study.reading import Count, NumberFromZero, Positive, read_as, stored
from llmquant.study.run import SCHEMA_VERSION, check_schema


@dataclass(frozen=True)
class StudyRecord:
    """A planned study: everything that a comparison needs besides the runs.

    Attributes:
        title: title for people.
        experiments: all experiments of the study, in order.
        baselines: label of the baseline's quantizer, by the model's digest.
        notes: notes for readers of the tables, for example about an added baseline.
        benchmarks: labels of the evaluators that a benchmark was split into, by the benchmark's label.
        limit: maximum documents per task; ``None`` for all.
        margins: the largest acceptable losses, see `llmquant.study.margins`.
        started_at: start of the study in ISO 8601, UTC; older runs were reused; ``""`` if unknown.
        order: what sorts the studies of a store: `started_at` in milliseconds since the epoch, but always larger than
            the `order` of earlier studies; 0 for a study that is not stored.
    """

    study_id: str
    title: str
    experiments: tuple[Experiment, ...]
    baselines: Mapping[str, str]
    notes: tuple[str, ...] = ()
    limit: Positive | None = None
    seed: Count = 0
    started_at: str = ""
    order: Count = 0
    benchmarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    margins: Mapping[str, NumberFromZero] = field(default_factory=lambda: DEFAULT)

    @cached_property
    def forms(self) -> Mapping[str, tuple[VectorForm, ...]]:
        """Return the forms of vectors by the model's digest, the baseline's first; embedders only."""
        found: dict[str, dict[VectorForm, None]] = {}
        for experiment in self.experiments:
            if experiment.variant.vectors is not None:
                found.setdefault(experiment.variant.model.digest, {})[experiment.variant.vectors] = None
        return {digest: tuple(forms) for digest, forms in found.items()}

    @cached_property
    def model_names(self) -> Mapping[str, str]:
        """Return the models' names for people, by digest."""
        return model_names(experiment.variant.model for experiment in self.experiments)

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the content of ``study.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "experiments": [experiment.to_json() for experiment in self.experiments],
            "baselines": dict(self.baselines),
            "margins": dict(self.margins),
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
