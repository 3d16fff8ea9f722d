"""The outcome of an experiment: measurements, samples, provenance, or its failure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from llmquant.errors import DamagedError, PluginError, StoreError
from llmquant.study.call import Json
from llmquant.study.experiment import Experiment, RunId, visible
from llmquant.study.reading import Count, Number, NumberFromZero, Positive, brief, read_as, stored, value_of

SCHEMA_VERSION = 1
# The file that an evaluator with ``reference=True`` writes into `Context.files` on the baseline.
REFERENCE_FILE = "reference.safetensors"

# Of a result without samples because its value is computed from other tasks' results.
GROUP = "a group's value has no documents of its own"

FailureKind = Literal["error", "out_of_memory", "timeout", "cancelled", "lost", "reference_failed", "data"]


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        task: name of the result's task.
        metric: the field's name for it: ``f1``, ``acc_norm``, ``perplexity``, ``prefill_ms``.
        value: the number; it may be infinite or NaN.
        unit: ``""`` for a ratio, else such as ``ms``, ``bytes``, ``tokens/s``.
        higher_is_better: ``None`` when neither direction is better.
        stderr: standard error of the value over `n`; ``None`` if there is none.
        n: samples or repeats behind the value; ``None`` for a single reading.
        at: conditions; only equal conditions are compared: ``{"prompt_tokens": 512, "batch": 4}``.
        headline: whether tables show the measurement; rows, CSV and JSON include every measurement.
    """

    task: str
    metric: str
    value: Number
    unit: str = ""
    higher_is_better: bool | None = None
    stderr: NumberFromZero | None = None
    n: Count | None = None
    at: Mapping[str, int | float | str] = field(default_factory=dict)
    headline: bool = True

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return a JSON object; a value that is not finite becomes a string, since JSON has no NaN."""
        stderr = None if self.stderr is None else _number_out(self.stderr)
        return {**vars(self), "value": _number_out(self.value), "stderr": stderr, "at": dict(self.at)}


@dataclass(frozen=True)
class Sample:
    """One scored document.

    Attributes:
        document: hash of the document; with `occurrence` it is unique in the task.
        occurrence: 0 for the first document of this hash, 1 for its duplicate, and so on.
        prompt: hash of the model's input, of token ids if there are any; two samples pair only if their prompts are
            equal.
        scores: value by metric.
        answer: the model's answer, if there is one.
        target: the expected answer, if it is a text.
        group: subtask or cluster, such as a story with several questions; ``""`` for none.
        generated: number of generated tokens, reasoning included and the end token excluded, of all answers to the
            document; ``None`` if nothing was generated, and for the next three.
        cut: whether an answer ended at the maximum number of new tokens, not at a stop string or an end token.
        looping: whether an answer ended in a loop, see `llmquant.study.looping`.
        early: whether generation ended as soon as nothing that follows could change the scores; the answer may be
            longer otherwise.
        decision_margin: smallest margin in nats of the decisions behind the scores, such as which choice or which
            token has the largest probability; ``None`` if it was not recorded.
    """

    document: str
    prompt: str
    scores: Mapping[str, Number]
    answer: str | None = None
    target: str | None = None
    group: str = ""
    occurrence: Count = 0
    generated: Count | None = None
    cut: bool | None = None
    looping: bool | None = None
    early: bool | None = None
    decision_margin: Number | None = None


def numbered(samples: Iterable[Sample]) -> list[Sample]:
    """Give each document that comes again the next `occurrence`."""
    seen = Counter[str]()
    found = []
    for sample in samples:
        found.append(replace(sample, occurrence=seen[sample.document]))
        seen[sample.document] += 1
    return found


@dataclass(frozen=True)
class Result:
    """The result of an evaluator for one task.

    Attributes:
        task: name of the task, unique in an evaluation.
        measurements: the task's numbers, one or more.
        samples: one per document, so that variants are compared document by document; may be empty.
        details: further facts: task versions, token counts, the batch size. Sentences in a list called ``notes`` are
            shown below the table.
        not_means: metrics whose value is not the mean of the samples' scores of the same name, such as the BLEU of
            a corpus; the mean of all other metrics is checked.
        prompts: texts of prompts by `Sample.prompt`, for people; a store keeps each once for all variants.
    """

    task: str
    measurements: Sequence[Measurement]
    samples: Sequence[Sample] = field(default=(), repr=False)
    details: Mapping[str, Json] = field(default_factory=dict)
    not_means: Collection[str] = ()
    prompts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_samples(
        cls,
        task: str,
        samples: Iterable[Sample],
        metric: str,
        *,
        higher_is_better: bool | None,
        unit: str = "",
        details: Mapping[str, Json] | None = None,
    ) -> Result:
        """Measure the mean of the samples' scores of `metric`, with its standard error.

        Args:
            samples: one per document, in any order; a document that comes again gets the next `occurrence`.

        Raises:
            PluginError: if no sample has a score of `metric`.
        """
        given = numbered(samples)
        scores = [float(sample.scores[metric]) for sample in given if metric in sample.scores]
        if not scores:
            known = {name for sample in given for name in sample.scores}
            found = f"Their scores are {', '.join(sorted(known))}." if known else "There are no scores."
            raise PluginError(f"task {task!r}: no sample has a score {metric!r}", hint=found)
        n = len(scores)
        mean = sum(scores) / n
        spread = sum((score - mean) * (score - mean) for score in scores)
        stderr = math.sqrt(spread / (n - 1) / n) if n > 1 else None
        measurement = Measurement(task, metric, mean, unit, higher_is_better, stderr, n)
        return cls(task, [measurement], given, details or {})


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        message: one or more lines for people.
        log_tail: the last lines of the worker's log.
    """

    kind: FailureKind
    message: str
    log_tail: str = ""


@dataclass(frozen=True)
class Run:
    """The outcome of one experiment.

    Attributes:
        applied: actual properties of the quantized weights; ``None`` if the weights were never loaded.
        details: `Result.details` by task; numbers that are not finite are stored as strings.
        provenance: versions, device, dtype, threads, executor; never a token.
        started_at: ISO 8601, UTC.
        attempt: 1 for the first attempt; a repeat is stored in addition.
    """

    experiment: Experiment
    status: Literal["completed", "failed"]
    measurements: tuple[Measurement, ...]
    applied: Mapping[str, Json] | None
    provenance: Mapping[str, Json]
    started_at: str
    finished_at: str
    details: Mapping[str, Json] = field(default_factory=dict)
    failure: Failure | None = None
    attempt: Positive = 1

    def __repr__(self) -> str:
        use = self.experiment
        return f"<Run {self.run_id}: {use.variant.quantizer.label} · {use.evaluator.label}, {self.status}>"

    @property
    def run_id(self) -> RunId:
        """The id of the run, a digest of the request."""
        return self.experiment.run_id

    @property
    def seconds(self) -> float:
        """Time of the experiment in seconds, without loading the model."""
        return (datetime.fromisoformat(self.finished_at) - datetime.fromisoformat(self.started_at)).total_seconds()

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the content of ``run.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "status": self.status,
            "experiment": self.experiment.to_json(),
            "measurements": [finite_json(measurement.to_json()) for measurement in self.measurements],
            "applied": finite_json(self.applied),
            "details": finite_json(self.details),
            "provenance": finite_json(self.provenance),
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "failure": None if self.failure is None else finite_json(vars(self.failure)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:  # Any: a JSON object
        """Read the content of ``run.json``.

        Raises:
            DamagedError: if it is not a run.
            StoreError: if it was written by a newer version.
        """
        check_schema(data, "a run")
        with stored("a run"):
            run = read_as(cls, data, beside={"schema_version": Positive, "run_id": str})
            for name in ("compute_dtype", "note"):
                value_of(str | None, (run.applied or {}).get(name), f"applied.{name}")
        if data["run_id"] != run.run_id:
            raise DamagedError(f"the run says that it is {brief(data['run_id'])}; what it ran has the id {run.run_id}")
        if run.status == "completed" and run.failure is not None:
            raise DamagedError("the run says that it was completed and that it failed")
        try:
            run.seconds  # noqa: B018
        except (TypeError, ValueError) as error:
            times = f"{brief(run.started_at)} to {brief(run.finished_at)}"
            raise DamagedError(f"the run's times cannot be read: {times}") from error
        return run


def check_schema(data: Any, what: str) -> None:  # Any: a JSON value
    """Refuse data written by a newer version.

    Raises:
        StoreError: if the schema version is newer than this program's.
        DamagedError: if the schema version is missing.
    """
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if not isinstance(version, int):
        raise DamagedError(f"{what} has no schema_version", hint="Is this a file that llmquant wrote?")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{what} has schema version {version}; this llmquant reads up to {SCHEMA_VERSION}",
            hint="Run: pip install --upgrade llmquant",
        )


def _number_out(value: float) -> float | str:
    # float() because evaluators hand out numpy scalars, which json does not write.
    value = value if isinstance(value, int) else float(value)
    return value if math.isfinite(value) else str(value)


def finite_json(value: Json) -> Json:
    """Write values that JSON and UTF-8 cannot hold as text: numbers that are not finite, lone surrogates."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key) if isinstance(key, str) else key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return _number_out(value) if isinstance(value, float) else value
