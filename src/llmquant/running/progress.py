"""The progress of a study: finished and running experiments, and the estimated remaining time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmquant.plugins.registry import Registry
from llmquant.study.experiment import Experiment, PluginUse, RunId
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
        remaining_s: estimated remaining time in seconds; ``None`` until an experiment of each kind has been seen, while
            a model loads or has to be quantized, and while a job waits for another study.
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
    stage: str = "starting"  # until the model is loaded
    loaded: bool = False
    done: int = 0
    total: int = 0
    finished: set[RunId] = field(default_factory=set)
    log_read: int = 0  # bytes of the worker's log that were logged here too
    waiting: str = ""  # who holds what the job needs


def progress(
    record: StudyRecord,
    reused: Mapping[RunId, Run],
    runs: Mapping[RunId, Run],
    active: Sequence[ActiveJob],
    load_s: float | None,
    slots: int = 1,
) -> Progress:
    """Describe how a study stands.

    Args:
        reused: the runs that were stored before; `runs` has them too.
        load_s: seconds to load the variants that have no job yet; ``None`` if that is unknown.
        slots: maximum number of simultaneous jobs.
    """
    own = [run for run_id, run in runs.items() if run_id not in reused]
    return Progress(
        len(record.experiments),
        sum(experiment.run_id in reused for experiment in record.experiments),
        sum(run.status == "completed" for run in own),
        sum(run.status == "failed" for run in own),
        tuple(_running(job) for job in active if job.current or job.waiting or not job.loaded),
        None if load_s is None else _remaining_s(record, runs, active, load_s, slots),
    )


def load_seconds(rest: Sequence[Experiment], loads: Mapping[str, float], registry: Registry) -> float | None:
    """Add the time to load each variant of `rest`; ``None`` if one is to be quantized, or of a model not loaded yet.

    Args:
        rest: experiments that are in no job.
        loads: seconds that loading took, by the model's digest.
    """
    variants = {(e.variant.model.digest, e.variant.quantizer.label): e.variant for e in rest}.values()
    if any(writes_checkpoint(v.quantizer, registry) or v.model.digest not in loads for v in variants):
        return None
    return sum(loads[variant.model.digest] for variant in variants)


def writes_checkpoint(quantizer: PluginUse, registry: Registry) -> bool:
    """Return whether a quantizer calibrates and writes a checkpoint, which takes longer than loading."""
    return any(p.full_name == quantizer.plugin and p.spec.checkpoint for p in registry.plugins)


def _running(job: ActiveJob) -> Running:
    experiment = next((e for e in job.experiments if e.run_id == job.current), None)
    what = experiment.evaluator.label if experiment else "quantizing" if job.total else job.stage
    if job.waiting:
        what = f"waits for {job.waiting}"
    return Running(f"{job.experiments[0].variant.quantizer.label} · {what}", job.done, job.total, job.since)


def _remaining_s(
    record: StudyRecord, runs: Mapping[RunId, Run], active: Sequence[ActiveJob], load_s: float, slots: int
) -> float | None:
    """Return when the last job ends, if each missing experiment takes what it took in another variant.

    Jobs that are not started yet, one per variant, follow on the slot that is free first; ``None`` while a job loads,
    quantizes or waits.
    """
    if any(job.waiting or not job.loaded for job in active):
        return None
    took: dict[object, list[float]] = {}
    for run in runs.values():
        if run.status == "completed":
            took.setdefault(_kind(run.experiment), []).append(run.seconds)
    owners = {e.run_id: number for number, job in enumerate(active) for e in job.experiments}
    jobs: dict[object, float] = dict.fromkeys(range(len(active)), 0.0)
    for experiment in record.experiments:
        if experiment.run_id in runs:
            continue
        variant = experiment.variant
        owner = owners.get(experiment.run_id, (variant.model.digest, variant.quantizer.label))
        known = took.get(_kind(experiment))
        job = next((job for job in active if job.current == experiment.run_id), None)
        spent = time.monotonic() - job.since if job else 0.0
        if job and job.done:
            left = spent * (job.total - job.done) / job.done
        elif known:
            left = max(0.0, sum(known) / len(known) - spent)
        else:
            return None
        jobs[owner] = jobs.get(owner, 0.0) + left
    running, waiting = list(jobs.values())[: len(active)], list(jobs.values())[len(active) :]
    ends = running + [0.0] * max(1 - len(running), slots - len(running))
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds + load_s / len(waiting))
    return max(ends)


def _kind(experiment: Experiment) -> object:
    """Return what experiments of about the same duration share: all but quantizer and vectors."""
    return experiment.variant.model.digest, experiment.evaluator.label, experiment.documents, experiment.hardware
