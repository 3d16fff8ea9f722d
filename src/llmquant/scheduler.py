"""Plan, submit, collect, plan again: from experiments to runs, whatever happens to the workers."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from llmquant.call import Json
from llmquant.errors import StoreError
from llmquant.experiment import Experiment, RunId
from llmquant.job import blank_tokens, job_json, log_path, log_tail, read_journal
from llmquant.plan import Planned, plan
from llmquant.plugins.registry import Registry
from llmquant.plugins.spec import RunEvent, spec_to_json
from llmquant.protocols import Executor, Job
from llmquant.run import Failure, FailureKind, Run
from llmquant.store import Store, write_json

_POLL_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """An experiment, or the loading of a model, that is under way.

    Attributes:
        label: ``bnb_4bit_nf4 · lm_eval(coqa)``.
        done: with `total`, how far it is; `total` is 0 while that is not known.
        since: seconds since the epoch.
    """

    label: str
    done: int
    total: int
    since: float


@dataclass(frozen=True)
class Progress:
    """How a study stands.

    Attributes:
        remaining_s: about how long it will go on; ``None`` until an experiment of each kind has been seen.
    """

    total: int
    reused: int
    completed: int
    failed: int
    running: tuple[Running, ...]
    remaining_s: float | None


@dataclass
class _Active:
    """A job that was submitted and has not ended. The one thing here that changes as the journal is read."""

    job_id: str
    record: Path
    experiments: list[Experiment]
    attempts: dict[RunId, int]
    offset: int = 0
    current: RunId | None = None
    since: float = field(default_factory=time.time)
    loaded: bool = False
    done: int = 0
    total: int = 0
    finished: set[RunId] = field(default_factory=set)


class Scheduler:
    """Runs one study. It owns the jobs it submitted; `close` ends them.

    Args:
        fresh: repeat what is stored; the new runs stand beside the old.
        timeout_s: longest time for one experiment, and for quantizing and loading a model; ``None`` is for ever.
        watch: called about ten times a second.
    """

    def __init__(
        self,
        planned: Planned,
        registry: Registry,
        store: Store,
        executor: Executor,
        *,
        fresh: bool = False,
        timeout_s: float | None = None,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._planned = planned
        self._registry = registry
        self._store = store
        self._executor = executor
        self._timeout_s = timeout_s
        self._watch = watch
        self._active: list[_Active] = []
        self._attempts = {e.run_id: store.attempts(e.run_id) for e in planned.record.experiments}
        stored = {} if fresh else {e.run_id: store.run(e.run_id) for e in planned.record.experiments}
        self.reused = {run_id: run for run_id, run in stored.items() if run is not None and run.status == "completed"}
        self.runs: dict[RunId, Run] = dict(self.reused)

    def run(self) -> dict[RunId, Run]:
        """Run what is missing; return the runs of this study, the reused ones included."""
        self._store.sweep()
        try:
            while self._submit() or self._active:
                time.sleep(_POLL_S)
                for active in list(self._active):
                    self._advance(active)
                self._watch(self.progress())
        except BaseException:  # Ctrl-C as well: whatever happens, no worker is left and what ran is told
            self._cancel_all()
            raise
        self._watch(self.progress())
        return self.runs

    def progress(self) -> Progress:
        """Say how the study stands."""
        own = [run for run_id, run in self.runs.items() if run_id not in self.reused]
        return Progress(
            len(self._planned.record.experiments),
            len(self.reused),
            sum(run.status == "completed" for run in own),
            sum(run.status == "failed" for run in own),
            tuple(_running(active) for active in self._active if active.current or not active.loaded),
            self._remaining_s(),
        )

    def _submit(self) -> bool:
        """Start jobs while there is room; say whether any runs."""
        taken = {e.run_id for active in self._active for e in active.experiments}
        waiting = [e for e in plan(self._planned.record, self.runs) if e.run_id not in taken]
        for loading, ready in itertools.groupby(waiting, key=_loading):
            if len(self._active) >= self._executor.slots:
                break
            group = list(ready)
            ids = {e.run_id for e in group}
            # One process can do these one after the other.
            group += [
                e
                for e in self._planned.record.experiments
                if e.reference in ids and _loading(e) == loading and e.run_id not in ids and e.run_id not in self.runs
            ]
            self._active.append(self._start(group))
        return bool(self._active)

    def _start(self, experiments: Sequence[Experiment]) -> _Active:
        model = experiments[0].variant.model
        attempts = {e.run_id: 1 + max(self._attempts[e.run_id], default=0) for e in experiments}
        number, record = self._store.new_job(self._planned.record.study_id)
        job = Job(
            self._planned.record.study_id,
            number,
            model.to_json(),
            tuple((e.to_json(), attempts[e.run_id]) for e in experiments),
            {digest: str(path) for digest, path in self._planned.inputs.items()},
            self._executor.device,
            self._executor.threads,
            tuple(spec_to_json(p.spec) for p in self._registry.plugins if p.package == "registered"),
        )
        write_json(record, job_json(job, None))  # before submit: a crash in between leaves a job that never started
        job_id = self._executor.submit(record, self._store.root)
        write_json(record, job_json(job, job_id))
        return _Active(job_id, record, list(experiments), attempts)

    def _advance(self, active: _Active) -> None:
        """Read what a job did since the last look, and settle it when it has ended."""
        state = self._executor.collect(active.job_id, self._store.root)
        entries, active.offset = read_journal(active.record, active.offset)
        for entry in entries:
            run_id = RunId(entry.run_id)
            if entry.event == "loading":  # once more after a quantization
                active.done, active.total = 0, 0
            elif entry.event == "loaded":
                active.loaded = True
            elif entry.event == "started":
                active.loaded, active.current, active.since, active.done, active.total = True, run_id, entry.at, 0, 0
                self._notify(active, run_id, "started")
            elif entry.event == "progress":
                active.done, active.total = entry.done, entry.total
            elif entry.event == "finished":
                active.current, active.since, active.done, active.total = None, entry.at, 0, 0
                self._finish(active, run_id, self._stored(active, run_id))
        if state in ("ended", "lost"):
            reason = self._executor.why_lost(active.job_id) if state == "lost" else "the worker ended without a result"
            self._settle(active, "lost", reason)
        elif self._timeout_s is not None and time.time() - active.since > self._timeout_s:
            self._executor.cancel(active.job_id)
            what = "the experiment" if active.loaded else "loading the model"
            self._settle(active, "timeout", f"{what} took longer than {self._timeout_s:g} s")

    def _settle(self, active: _Active, kind: FailureKind, reason: str) -> None:
        """Take a job that has ended off the list.

        What was running has failed. What had not started goes into a new job, unless the worker died before it could
        start anything: then it would die again.
        """
        self._active.remove(active)
        left = [e for e in active.experiments if e.run_id not in active.finished]
        failed = [e for e in left if e.run_id == active.current] if active.loaded else left
        if left and not failed and kind == "lost":
            failed = left[:1]  # it died between two experiments
        path = log_path(active.record)
        raw = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        log = blank_tokens(raw)
        if log != raw:  # the worker wrote it past us
            path.write_text(log, encoding="utf-8")
        for experiment in failed:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            started = datetime.fromtimestamp(active.since, UTC).isoformat(timespec="milliseconds")
            run = Run(
                experiment,
                "failed",
                (),
                None,
                {"executor_hardware": self._executor.hardware},
                started,
                now,
                failure=Failure(kind, reason, log_tail(log)),
                attempt=active.attempts[experiment.run_id],
            )
            self._store_failed(run, log)
            self._finish(active, experiment.run_id, run)
        self._store.sweep()

    def _store_failed(self, run: Run, log: str) -> None:
        try:
            partial = self._store.begin(run.run_id)
            (partial / "log.txt").write_text(blank_tokens(log), encoding="utf-8")
            self._store.commit(run, partial, {})
        except (StoreError, OSError) as error:  # a full disk: the run is told, if not kept
            _log.warning("a failed run could not be stored: %s", error)

    def _stored(self, active: _Active, run_id: RunId) -> Run:
        attempt = active.attempts[run_id]
        run = self._store.attempt(run_id, attempt)
        return replace(run, experiment=next(e for e in active.experiments if e.run_id == run_id))

    def _finish(self, active: _Active, run_id: RunId, run: Run) -> None:
        active.finished.add(run_id)
        self.runs[run_id] = run
        self._notify(active, run_id, run.status, run.failure.message if run.failure else "")

    def _notify(self, active: _Active, run_id: RunId, status: str, message: str = "") -> None:
        experiment = next(e for e in active.experiments if e.run_id == run_id)
        self._registry.notify(
            RunEvent(
                self._planned.record.study_id,
                run_id,
                experiment.variant.model.source,
                experiment.variant.quantizer.label,
                experiment.evaluator.label,
                status,
                message,
            )
        )

    def _cancel_all(self) -> None:
        for active in list(self._active):
            self._executor.cancel(active.job_id)
            entries, active.offset = read_journal(active.record, active.offset)
            for entry in entries:
                if entry.event == "finished":
                    self._finish(active, RunId(entry.run_id), self._stored(active, RunId(entry.run_id)))
                elif entry.event == "started":
                    active.current, active.loaded = RunId(entry.run_id), True
            if active.current in active.finished:
                active.current = None
            active.loaded = True  # what had not started is not failed, only not done
            self._settle(active, "cancelled", "the study was interrupted")

    def _remaining_s(self) -> float | None:
        """Add up what each missing experiment took in another variant."""
        took: dict[str, list[float]] = {}
        for run in self.runs.values():
            if run.status == "completed":
                took.setdefault(run.experiment.evaluator.label, []).append(seconds(run))
        total = 0.0
        for experiment in plan(self._planned.record, self.runs):
            known = took.get(experiment.evaluator.label)
            active = next((a for a in self._active if a.current == experiment.run_id), None)
            spent = time.time() - active.since if active else 0.0
            if active and active.done:
                total += spent * (active.total - active.done) / active.done
            elif known:
                total += max(0.0, sum(known) / len(known) - spent)
            else:
                return None
        return total


def _loading(experiment: Experiment) -> Json:
    """Return what has to be loaded for an experiment: equal for those that share a job."""
    return [experiment.variant.model.identity(), experiment.variant.quantizer.identity()]


def seconds(run: Run) -> float:
    """Return how long a run took."""
    return (datetime.fromisoformat(run.finished_at) - datetime.fromisoformat(run.started_at)).total_seconds()


def _running(active: _Active) -> Running:
    experiment = next((e for e in active.experiments if e.run_id == active.current), None)
    what = experiment.evaluator.label if experiment else "quantizing" if active.total else "loading"
    quantizer = active.experiments[0].variant.quantizer.label
    return Running(f"{quantizer} · {what}", active.done, active.total, active.since)
