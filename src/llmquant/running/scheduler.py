"""Plan, submit, collect, plan again: from experiments to runs, whatever happens to the workers."""

from __future__ import annotations

import functools
import logging
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from llmquant.errors import DamagedError, StoreError
from llmquant.planning.resolve import Planned, plan
from llmquant.plugins.executor import Executor, Offer
from llmquant.plugins.registry import Registry
from llmquant.plugins.spec import RunEvent
from llmquant.running.jobs import make_groups
from llmquant.running.progress import ActiveJob, Progress, load_seconds, progress, writes_checkpoint
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.journal import JobRecord, log_path, log_tail, read_journal, read_log
from llmquant.storage.store import Store, write_json
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.job import Job
from llmquant.study.run import Failure, FailureKind, Run, Sample

_POLL_S = 0.1
# A job's record: its file, its content, and its runs with their attempts.
_Submitted: TypeAlias = tuple[Path, JobRecord, Sequence[tuple[RunId, int]]]

_log = logging.getLogger(__name__)


class Scheduler:
    """Runs one study. The scheduler owns the jobs that it submitted or took up, until `stop` cancels or leaves them.

    Constructing a scheduler, and calling `check` or `jobs`, touches no job.

    Args:
        fresh: repeat stored experiments; the new runs are stored in addition to the old ones.
        timeout_s: maximum time per experiment, and for quantizing and loading a model, in seconds; ``None`` for no
            limit.
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
    ) -> None:
        self.record = self._asked = planned.record
        self.store = store
        self._inputs = planned.inputs
        self._registry = registry
        self._executor = executor
        self._fresh = fresh
        self._timeout_s = timeout_s
        self._active: list[ActiveJob] = []
        self._causes: dict[str, str] = {}  # what failed first, by message
        self._loads: dict[str, float] = {}  # seconds that loading took, by model

    @functools.cached_property
    def reused(self) -> dict[RunId, Run]:
        """The stored completed runs."""
        stored = {} if self._fresh else {e.run_id: self.store.readable(e.run_id) for e in self.record.experiments}
        return {run_id: run for run_id, run in stored.items() if run is not None and run.status == "completed"}

    @functools.cached_property
    def runs(self) -> dict[RunId, Run]:
        """The runs of this study: the reused ones, and new ones as jobs finish."""
        return dict(self.reused)

    def check(self) -> Offer | None:
        """Let the executor refuse jobs that cannot run, and return the maximum cost of the remaining jobs.

        Raises:
            RequestError: as `Executor.check`.
        """
        submitted = self._submitted()
        jobs = self._missing(submitted)
        running = [found.job_id for _, found, _ in submitted if found.job_id]
        return self._executor.check(jobs, running=running) if jobs else None

    def jobs(self) -> list[Job]:
        """Make jobs for all experiments that are missing and in no job; the jobs have no numbers in the store yet."""
        return self._missing(self._submitted())

    def take_up(self) -> bool:
        """Take up unfinished jobs that another program submitted to this executor.

        Returns:
            Whether a job was lost, so that its experiments are missing now.
        """
        known = {e.run_id: e for e in self.record.experiments}
        lost = False
        for record, found, ids in self._submitted():
            if self._executor.collect(found.job_id or "", self.store.root) == "lost":
                _log.warning("job %d is lost: %s", found.job.number, self._executor.why_lost(found.job_id or ""))
                write_json(record, replace(found, ended=True).to_json())
                stored = ((run_id, self.store.readable(run_id)) for run_id, _ in ids)
                self.runs.update({i: run for i, run in stored if run is not None and run.status == "completed"})
                lost = True
            else:
                experiments = [known[run_id] for run_id, _ in ids]
                self._active.append(ActiveJob(found.job, found.job_id or "", record, experiments, dict(ids)))
        return lost

    def run(
        self,
        watch: Callable[[Progress], None] = lambda state: None,
        experiments: Sequence[Experiment] | None = None,
    ) -> dict[RunId, Run]:
        """Run the missing experiments; return the runs of this study, including the reused ones.

        Args:
            watch: called about ten times per second.
            experiments: the study's experiments to run now; ``None`` for all.
        """
        if experiments is not None:
            self._asked = replace(self.record, experiments=tuple(experiments))
        self.store.sweep()
        while self._submit() or self._active:
            self._look(watch)
        watch(self._progress())
        return self.runs

    def wait(self, watch: Callable[[Progress], None] = lambda state: None) -> dict[RunId, Run]:
        """Wait for the jobs taken up, without starting new ones; return the runs of this study."""
        while self._active:
            self._look(watch)
        return self.runs

    def submit_all(self) -> int:
        """Submit all experiments that can start now, without regard to room; return the number of the others."""
        for group in self._groups(self._open(plan(self.record, self.runs)), self._executor.slots):
            self._active.append(self._start(group))
        return len(self._open(self.record.experiments))

    def stop(self, *, cancel: bool) -> int:
        """Cancel the running jobs, or let them continue without this program; return their number."""
        count = len(self._active)
        if cancel:
            self._cancel_all()
        for active in self._active:
            self._executor.leave(active.job_id)
        self._active.clear()
        return count

    def _open(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Select those without a run or a job."""
        taken = {*self.runs, *(e.run_id for active in self._active for e in active.experiments)}
        return [e for e in experiments if e.run_id not in taken]

    def _look(self, watch: Callable[[Progress], None]) -> None:
        time.sleep(_POLL_S)
        for active in list(self._active):
            self._advance(active)
        watch(self._progress())

    def _progress(self) -> Progress:
        load_s = load_seconds(self._open(self._asked.experiments), self._loads, self._registry)
        return progress(self._asked, self.reused, self.runs, self._active, load_s, self._executor.slots)

    def _missing(self, submitted: Sequence[_Submitted]) -> list[Job]:
        elsewhere = {run_id for _, _, ids in submitted for run_id, _ in ids}
        missing = [e for e in self._open(self.record.experiments) if e.run_id not in elsewhere]
        groups = self._groups(missing, self._executor.slots)
        return [self._job(group, number) for number, group in enumerate(groups, 1)]

    def _submitted(self) -> list[_Submitted]:
        """Read the records of unfinished jobs that another program submitted to this executor."""
        if self._fresh or not self._executor.outlives:
            return []
        known = {e.run_id for e in self.record.experiments}
        active = {active.job_id for active in self._active}
        result: list[_Submitted] = []
        for record in self.store.jobs(self.record.study_id):
            try:
                found = JobRecord.read(record)
                ids = found.asked()
            except DamagedError as error:
                _log.warning("Ignoring a job: %s", error)
                continue
            if not found.job_id or found.ended or found.job.executor != self._executor.name or found.job_id in active:
                continue
            if known >= {run_id for run_id, _ in ids}:
                result.append((record, found, ids))
            else:
                _log.warning("Ignoring %s: the job belongs to another study", record)
        return result

    def _submit(self) -> bool:
        """Start jobs while there is room; return whether a job is running."""
        free = self._executor.slots - len(self._active)
        if free > 0:
            for group in self._groups(self._open(plan(self._asked, self.runs)), free)[:free]:
                self._active.append(self._start(group))
        return bool(self._active)

    def _groups(self, experiments: Sequence[Experiment], room: int) -> list[list[Experiment]]:
        return make_groups(experiments, self._open(self._asked.experiments), self._registry, room)

    def _job(self, experiments: Sequence[Experiment], number: int) -> Job:
        attempts = {e.run_id: 1 + max(self.store.attempts(e.run_id), default=0) for e in experiments}
        return Job(
            self.record.study_id,
            number,
            experiments[0].variant.model.to_json(),
            tuple((e.to_json(), attempts[e.run_id]) for e in experiments),
            {digest: str(path) for digest, path in self._inputs.items()},
            self._executor.device,
            self._executor.threads,
            tuple(vars(p.spec) for p in self._registry.plugins if p.package == "registered"),
            self._executor.name,
        )

    def _start(self, experiments: Sequence[Experiment]) -> ActiveJob:
        number, record = self.store.new_job(self.record.study_id)
        job = self._job(experiments, number)
        attempts = {e.run_id: attempt for e, (_, attempt) in zip(experiments, job.experiments, strict=True)}
        # Before submit: a crash in between leaves a job that never started.
        write_json(record, JobRecord(job).to_json())
        job_id = self._executor.submit(record, self.store.root)
        write_json(record, JobRecord(job, job_id).to_json())
        return ActiveJob(job, job_id, record, list(experiments), attempts)

    def _advance(self, active: ActiveJob) -> None:
        """Read a job's new journal entries, and settle the job when it has ended."""
        state = self._executor.collect(active.job_id, self.store.root)
        if _log.isEnabledFor(logging.INFO):
            _forward_log(active)
        self._read(active)
        now = time.monotonic()
        if state == "queued":
            active.since = now
        if state in ("ended", "lost"):
            reason = self._executor.why_lost(active.job_id) if state == "lost" else "the worker ended without a result"
            self._settle(active, "lost", reason)
        elif self._timeout_s is not None and not active.waiting and now - active.since > self._timeout_s:
            what, before = "the experiment" if active.loaded else active.stage, active.since
            self._executor.cancel(active.job_id)
            self._read(active)
            if active.since == before:
                self._settle(active, "timeout", f"{what} took longer than {self._timeout_s:g} s")
            else:  # the job finished while it was being cancelled, and nothing has failed
                active.current, active.loaded = None, True
                self._settle(active, "cancelled", "")

    def _read(self, active: ActiveJob) -> None:
        """Read new entries of the journal."""
        entries, active.offset = read_journal(active.record, active.offset)
        now = time.monotonic()
        for entry in entries:
            run_id = RunId(entry.run_id)
            if run_id and run_id not in active.attempts:
                continue  # an entry that does not belong to this job
            if entry.who != active.waiting:  # the wait begins or ends: time spent waiting is not limited
                active.waiting, active.since = entry.who, now
            if entry.event == "fetching":
                active.stage = "fetching data"
            elif entry.event == "loading":  # once more after a quantization
                active.stage, active.done, active.total = "loading", 0, 0
            elif entry.event == "loaded":
                active.loaded = True
                variant = active.experiments[0].variant
                if not writes_checkpoint(variant.quantizer, self._registry):
                    self._loads[variant.model.digest] = now - active.since
            elif entry.event == "started":
                active.loaded, active.current, active.since, active.done, active.total = True, run_id, now, 0, 0
                self._notify(next(e for e in active.experiments if e.run_id == run_id), "started")
            elif entry.event == "progress":
                active.done, active.total = entry.done, entry.total
            elif entry.event == "finished":
                active.current, active.since, active.done, active.total = None, now, 0, 0
                self._finish(active, run_id, self._stored(active, run_id))

    def _settle(self, active: ActiveJob, kind: FailureKind, reason: str) -> None:
        """Remove a job that has ended from the list.

        The running experiment has failed. Experiments that had not started go into a new job, unless the worker died
        before starting any: a new worker would die too.
        """
        self._active.remove(active)
        dollars = self._executor.dollars(active.job_id)
        write_json(active.record, JobRecord(active.job, active.job_id, ended=True, dollars=dollars).to_json())
        for run_id, attempt in active.attempts.items():
            if run_id not in active.finished and attempt in self.store.attempts(run_id):
                self._finish(active, run_id, self._stored(active, run_id))  # stored, but missing from the journal
        left = [e for e in active.experiments if e.run_id not in active.finished]
        failed = [e for e in left if e.run_id == active.current] if active.loaded else left
        if left and not failed and kind in ("lost", "timeout"):
            failed = left[:1]  # the worker ended between two experiments
        raw = read_log(active.record)
        log = blank_secrets(raw)
        if log != raw:  # the worker wrote the log itself
            log_path(active.record).write_text(log, encoding="utf-8")
        for experiment in failed:
            ended = datetime.now(UTC)
            started = ended - timedelta(seconds=time.monotonic() - active.since)
            run = Run(
                experiment,
                "failed",
                (),
                None,
                {"executor_hardware": self._executor.hardware},
                started.isoformat(timespec="milliseconds"),
                ended.isoformat(timespec="milliseconds"),
                failure=Failure(kind, blank_secrets(reason), log_tail(log)),
                attempt=active.attempts[experiment.run_id],
            )
            self._finish(active, experiment.run_id, self._store_failed(run, log))
        self.store.sweep()

    def _store_failed(self, run: Run, log: str) -> Run:
        """Store a run whose worker has ended, with its finished tasks."""
        samples: dict[str, list[Sample]] = {}
        try:
            partial = self.store.begin()
            if found := self.store.kept(run.run_id, run.attempt):
                kept, samples, files = found
                run = replace(kept, experiment=run.experiment, failure=run.failure, finished_at=run.finished_at)
                files.replace(partial / "files")
            (partial / "log.txt").write_text(blank_secrets(log), encoding="utf-8")
            self.store.commit(run, partial, samples)
            return replace(self.store.attempt(run.run_id, run.attempt), experiment=run.experiment)  # blanked
        except (StoreError, OSError) as error:  # a full disk: the run is reported, though not stored
            _log.warning("A failed run could not be stored: %s", error)
        return run

    def _stored(self, active: ActiveJob, run_id: RunId) -> Run:
        attempt = active.attempts[run_id]
        run = self.store.attempt(run_id, attempt)
        return replace(run, experiment=next(e for e in active.experiments if e.run_id == run_id))

    def _finish(self, active: ActiveJob, run_id: RunId, run: Run) -> None:
        active.finished.add(run_id)
        self._record(run)
        if run.failure is not None and run.failure.kind == "data":
            self._fail_alike(run)

    def _fail_alike(self, failed: Run) -> None:
        """Let the experiments of other variants that read the same data fail too, instead of trying again."""
        for experiment in self._open(self._asked.experiments):
            if experiment.evaluator == failed.experiment.evaluator:
                attempt = 1 + max(self.store.attempts(experiment.run_id), default=0)
                self._record(self._store_failed(replace(failed, experiment=experiment, attempt=attempt), ""))

    def _record(self, run: Run) -> None:
        """Add a run to the study's, and print why it failed."""
        self.runs[run.run_id] = run
        if run.failure is not None and run.failure.kind != "cancelled":
            what = f"{run.experiment.variant.quantizer.label} · {run.experiment.evaluator.label}"
            first = self._causes.setdefault(run.failure.message, what)
            cause = textwrap.shorten(run.failure.message, 500) if first == what else f"same cause as {first}"
            _log.warning("%s failed: %s", what, cause)
        self._notify(run.experiment, run.status, run.failure.message if run.failure else "")

    def _notify(self, experiment: Experiment, status: str, message: str = "") -> None:
        self._registry.notify(
            RunEvent(
                self.record.study_id,
                experiment.run_id,
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
            self._read(active)
            active.loaded = True  # experiments that had not started have not failed
            self._settle(active, "cancelled", "the study was interrupted")


def _forward_log(active: ActiveJob) -> None:
    """Log the new lines of the worker's log."""
    path = log_path(active.record)
    if path.exists() and path.stat().st_size > active.log_read:
        with path.open("rb") as stream:
            stream.seek(active.log_read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        active.log_read += len(whole)
        label = active.experiments[0].variant.quantizer.label
        for line in whole.decode(errors="replace").splitlines():
            _log.info("%s: %s", label, blank_secrets(line.rsplit("\r", 1)[-1].rstrip()))
