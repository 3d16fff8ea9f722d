"""The progress of a study: finished and running experiments, and the estimated remaining time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmquant.planning.resolve import plan
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.job import Job
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run


@dataclass(frozen=True)
class Running:
    """A running experiment, or the loading of a model.

    Attributes:
        label: label such as ``bnb_4bit_nf4 · lm_eval(coqa)``.
        done: progress, out of `total`; `total` is 0 while unknown.
        since: start by `time.monotonic`; for a job of another program, the time of taking it up.
    """

    label: str
    done: int
    total: int
    since: float


@dataclass(frozen=True)
class Progress:
    """The progress of a study.

    Attributes:
        remaining_s: estimated remaining time in seconds; ``None`` until an experiment of each kind has been seen, and
            while a model loads or is quantized, or a job waits for another study.
    """

    total: int
    reused: int
    completed: int
    failed: int
    running: tuple[Running, ...]
    remaining_s: float | None


@dataclass
class ActiveJob:
    """A submitted job that has not ended; the only mutable class here, updated while the journal is read."""

    job: Job
    job_id: str
    record: Path
    experiments: list[Experiment]
    attempts: dict[RunId, int]
    offset: int = 0
    current: RunId | None = None
    since: float = field(default_factory=time.monotonic)  # the system clock may be changed while a study runs
    loaded: bool = False
    done: int = 0
    total: int = 0
    finished: set[RunId] = field(default_factory=set)
    told: int = 0
    waiting: str = ""


def progress(
    record: StudyRecord, reused: Mapping[RunId, Run], runs: Mapping[RunId, Run], active: Sequence[ActiveJob]
) -> Progress:
    """Describe how a study stands.

    Args:
        reused: the runs that were stored before; `runs` has them too.
    """
    own = [run for run_id, run in runs.items() if run_id not in reused]
    return Progress(
        len(record.experiments),
        sum(experiment.run_id in reused for experiment in record.experiments),
        sum(run.status == "completed" for run in own),
        sum(run.status == "failed" for run in own),
        tuple(_running(job) for job in active if job.current or job.waiting or not job.loaded),
        _remaining_s(record, runs, active),
    )


def _running(job: ActiveJob) -> Running:
    experiment = next((e for e in job.experiments if e.run_id == job.current), None)
    what = experiment.evaluator.label if experiment else "quantizing" if job.total else "loading"
    if job.waiting:
        what = f"waits for {job.waiting}"
    return Running(f"{job.experiments[0].variant.quantizer.label} · {what}", job.done, job.total, job.since)


def _remaining_s(record: StudyRecord, runs: Mapping[RunId, Run], active: Sequence[ActiveJob]) -> float | None:
    """Add up what each missing experiment took in another variant; ``None`` while a job loads, quantizes or waits."""
    if any(job.waiting or not job.loaded for job in active):
        return None
    took: dict[str, list[float]] = {}
    for run in runs.values():
        if run.status == "completed":
            took.setdefault(run.experiment.evaluator.label, []).append(run.seconds)
    total = 0.0
    for experiment in plan(record, runs):
        known = took.get(experiment.evaluator.label)
        job = next((job for job in active if job.current == experiment.run_id), None)
        spent = time.monotonic() - job.since if job else 0.0
        if job and job.done:
            total += spent * (job.total - job.done) / job.done
        elif known:
            total += max(0.0, sum(known) / len(known) - spent)
        else:
            return None
    return total
