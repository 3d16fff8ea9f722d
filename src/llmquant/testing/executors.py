"""Checks of executors, with real jobs of a tiny model."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from llmquant.errors import PluginError, StoreError
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import registry
from llmquant.storage.journal import JobRecord, log_path, read_journal
from llmquant.storage.store import Store, write_json
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.job import Job
from llmquant.study.run import Run
from llmquant.testing import misbehaving
from llmquant.testing.second import run_second
from llmquant.testing.trial import NotApplicable, Trial

GOOD, RAISES, DIES = "0", "3", "7"
_HOW = {RAISES: "raise", DIES: "exit"}
_EXPERIMENTS = 12
_PATIENCE_S = 300.0
_TIMEOUT_S = 6.0


@dataclass(frozen=True)
class _Study:
    """The runs of a study by the tag of their evaluator, and the largest number of simultaneous jobs."""

    runs: dict[str, Run]
    most_at_a_time: int


def good_experiments_complete(trial: Trial) -> None:
    """In a study in which one experiment raises and one ends its process, all others complete with equal numbers.

    To fix: run ``python -m llmquant.running.worker RECORD STORE`` once per job, and return ``ended`` or ``lost`` from
    ``collect``.
    """
    runs = _study(trial).runs
    failed = sorted(tag for tag, run in runs.items() if run.status == "failed")
    if failed != sorted(_HOW):
        message = next((run.failure.message for tag, run in runs.items() if run.failure and tag not in _HOW), "")
        raise PluginError(f"the failed experiments are {failed}, expected {sorted(_HOW)}: {message}")
    good = [run.measurements for tag, run in runs.items() if tag not in _HOW]
    if any(measurements != good[0] for measurements in good):
        raise PluginError("equal experiments have different numbers")


def slots_are_used(trial: Trial) -> None:
    """As many jobs run at the same time as `slots` says, and never more.

    To fix: return from ``submit`` while the job runs; do not wait for its end.
    """
    most, slots = _study(trial).most_at_a_time, executor_of(trial).slots
    if most != slots:
        raise PluginError(f"{most} jobs ran at the same time, and slots is {slots}")


def failures_are_described(trial: Trial) -> None:
    """A failure has the exception's message; that of a dead worker says how it ended and has the end of its log.

    To fix: describe the end in ``why_lost``, and copy the log with ``llmquant.executors.shipping.bring_home``.
    """
    raised, died = (_study(trial).runs[tag].failure for tag in (RAISES, DIES))
    if raised is None or raised.kind != "error" or "this evaluator raises" not in raised.message:
        raise PluginError(f"the failure of an evaluator that raises is {raised}")
    if died is None or died.kind != "lost" or "3" not in died.message or misbehaving.BLANKED not in died.log_tail:
        raise PluginError(f"the failure of a worker that ended with exit code 3 is {died}")


def tokens_are_not_stored(trial: Trial) -> None:
    """A token that a worker printed is in no file of the store, at any time.

    To fix: keep the worker's log in a private folder, and copy it with ``llmquant.executors.shipping.bring_home``.
    """
    _study(trial)
    _refuse_tokens(trial)
    if not any(b"hf_***" in log.read_bytes() for log in store_of(trial).root.glob("**/*.log")):
        raise PluginError("the logs of the workers were not copied to the store")


def a_hang_ends_at_the_timeout(trial: Trial) -> None:
    """An experiment that hangs fails at the study's timeout, and stored runs are reused.

    To fix: end the worker in ``cancel``.
    """
    good = _study(trial).runs[GOOD]
    runs = _compare(trial, [_call("not", GOOD), _call("sleep", "hang")], timeout_s=_TIMEOUT_S)
    hang = runs["hang"].failure
    if hang is None or hang.kind != "timeout":
        raise PluginError(f"an experiment that hangs gave {hang or 'a result'}")
    if runs[GOOD] != good:
        raise PluginError("a stored run was not reused")


def cancel_ends_the_worker(trial: Trial) -> None:
    """When `cancel` returns, no process of the job is left, and its journal and log are in the store.

    To fix: wait for the end of the worker and of its children, and bring home what they wrote.
    """
    executor, (job_id, record) = executor_of(trial), _sleepers(trial)[0]
    _refuse_tokens(trial)
    executor.cancel(job_id)
    if workers(record):
        raise PluginError(f"the processes {workers(record)} are left")
    if "started" not in [entry.event for entry in read_journal(record, 0)[0]]:
        raise PluginError("the journal was not copied to the store")
    if misbehaving.BLANKED not in log_path(record).read_text(encoding="utf-8"):
        raise PluginError("the log was not copied to the store")
    state = executor.collect(job_id, store_of(trial).root)
    if state != "lost":
        raise PluginError(f"the state of a cancelled job is {state!r}, expected 'lost'")


def a_second_program_finds_a_job(trial: Trial) -> None:
    """Another process opens the executor, sees by the job's id that it runs, and may cancel it.

    To fix: return an id from ``submit`` that has everything another process needs.
    """
    executor, (job_id, record) = executor_of(trial), _sleepers(trial)[1]
    store = store_of(trial).root
    state = run_second(trial, "cancel", job_id, str(store))
    if state != "running":
        raise PluginError(f"a second program finds the job {state!r}, expected 'running'")
    wait_until(lambda: not workers(record) and executor.collect(job_id, store) in ("lost", "ended"), "a job that ends")


def a_job_that_was_left_continues(trial: Trial) -> None:
    """With ``outlives``, a job continues when the program that submitted it has ended.

    To fix: do not end jobs in ``close`` that were given to ``leave``; or set ``outlives = False``.
    """
    executor = executor_of(trial)
    if not executor.outlives:
        raise NotApplicable("jobs end with the program that submits them")
    record, run_id = write_job(trial, "left", how="not")
    job_id = run_second(trial, "leave", str(record), str(store_of(trial).root))
    wait_until(lambda: executor.collect(job_id, store_of(trial).root) == "ended", "a job that was left")
    run = store_of(trial).run(run_id)
    if run is None or run.status != "completed":
        raise PluginError(f"the run of a job that was left is {run}")


def unknown_studies_are_refused(trial: Trial) -> None:
    """`recall` raises a `StoreError` with the study's name for a study that the executor does not have.

    To fix: raise ``StoreError(f"study {study} is missing ...")``.
    """
    try:
        executor_of(trial).recall("nosuchstudy", store_of(trial).root)
    except StoreError as error:
        if "nosuchstudy" in str(error):
            return
        raise PluginError(f"the message does not name the study: {error.message}") from error
    raise PluginError("recall accepts a study that does not exist")


def close_ends_its_jobs(trial: Trial) -> None:
    """`close` ends the jobs that this executor submitted, and no process is left.

    To fix: cancel every job that was submitted and not left.
    """
    record, _ = write_job(trial, "closing", how="sleep")
    executor = registry().construct(trial.chosen)
    executor.submit(record, store_of(trial).root)
    executor.close()
    if workers(record):
        raise PluginError(f"the processes {workers(record)} are left")


def executor_of(trial: Trial) -> Executor:
    """Open the executor, once, with a cache of its own for its workers."""

    def make() -> Executor:
        known, before = registry(), list(registry().plugins)
        trial.cleanups.callback(lambda: setattr(known, "plugins", before))
        trial.cleanups.enter_context(mock.patch.dict(os.environ, LLMQUANT_CACHE=str(trial.cache.root)))
        known.register(misbehaving.SPEC)
        found: Executor = known.construct(trial.chosen)
        trial.cleanups.callback(found.close)
        return found

    return trial.once("executor", make)


def store_of(trial: Trial) -> Store:
    """Return the store of the trial's studies."""
    return Store(trial.folder / "store")


def write_job(trial: Trial, tag: str, *, how: str) -> tuple[Path, RunId]:
    """Write the record of a job, without a scheduler; return its path, and the id of its one run."""
    store, executor = store_of(trial), executor_of(trial)
    data = _study(trial).runs[GOOD].experiment.to_json()
    data["evaluator"] = {**data["evaluator"], "options": {**data["evaluator"]["options"], "how": how, "tag": tag}}
    study_id = store.studies()[-1]
    number, record = store.new_job(study_id)
    spec = vars(misbehaving.SPEC)
    job = Job(study_id, number, data["model"], ((data, 1),), {}, executor.device, 1, (spec,), executor.name)
    write_json(record, JobRecord(job).to_json())
    return record, Experiment.from_json(data).run_id


def workers(record: Path) -> list[int]:
    """List the processes on this machine that run a job, wherever its record was copied to."""
    place = "/".join(record.parts[-4:])
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if "llmquant.running.worker" in line and any(part.endswith(place) for part in line):
            found.append(process.pid)
    return found


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        PluginError: if it does not in five minutes.
    """
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise PluginError(f"{what}: nothing happened in {_PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _call(how: str, tag: str) -> str:
    return f"{misbehaving.SPEC.name}({how}, tag={tag})"


def _compare(trial: Trial, evaluators: list[str], *, timeout_s: float | None = None) -> dict[str, Run]:
    from llmquant.api import compare

    found = compare(
        str(trial.model),
        ["fp32_baseline"],
        evaluators,
        # Trials that run at the same time have studies of their own, by whose ids `workers` finds their processes.
        seed=zlib.crc32(str(trial.folder).encode()),
        executor=executor_of(trial),
        store=store_of(trial),
        timeout_s=timeout_s,
        progress=False,
    )
    return {str(run.experiment.evaluator.options["tag"]): run for run in found.runs.values()}


def _study(trial: Trial) -> _Study:
    """Run one study; count the jobs that run at the same time."""

    def run() -> _Study:
        executor, at_a_time = executor_of(trial), []
        running: set[str] = set()
        submit = executor.submit

        def counted(job: Path, store: Path) -> str:
            job_id = submit(job, store)
            running.difference_update([j for j in running if executor.collect(j, store) in ("ended", "lost")])
            running.add(job_id)
            at_a_time.append(len(running))
            return job_id

        tags = map(str, range(max(_EXPERIMENTS, 3 * executor.slots)))
        executor.submit = counted  # type: ignore[method-assign]  # only this object
        try:
            runs = _compare(trial, [_call(_HOW.get(tag, "not"), tag) for tag in tags])
        finally:
            executor.submit = submit  # type: ignore[method-assign]  # as it was
        return _Study(runs, max(at_a_time))

    return trial.once("study", run)


def _sleepers(trial: Trial) -> list[tuple[str, Path]]:
    """Submit two jobs that sleep, without a scheduler; return their ids and their records when both sleep."""

    def submit() -> list[tuple[str, Path]]:
        executor, store = executor_of(trial), store_of(trial).root
        records = [write_job(trial, tag, how="sleep")[0] for tag in ("first", "second")]
        found = [(executor.submit(record, store), record) for record in records]

        def sleep() -> bool:
            for job_id, _ in found:
                state = executor.collect(job_id, store)
                if state not in ("queued", "running"):
                    raise PluginError(f"the state of a job that sleeps is {state!r}: {executor.why_lost(job_id)}")
            return all(log_path(r).exists() and b"hf_***" in log_path(r).read_bytes() for r in records)

        wait_until(sleep, "two jobs that sleep")
        return found

    return trial.once("sleepers", submit)


def _refuse_tokens(trial: Trial) -> None:
    token = misbehaving.TOKEN.encode()
    files = [path for path in store_of(trial).root.rglob("*") if path.is_file()]
    found = [path.name for path in files if token in path.read_bytes()]
    if found:
        raise PluginError(f"a token is in {', '.join(found)}")


CHECKS = (
    good_experiments_complete,
    slots_are_used,
    failures_are_described,
    tokens_are_not_stored,
    a_hang_ends_at_the_timeout,
    cancel_ends_the_worker,
    a_second_program_finds_a_job,
    a_job_that_was_left_continues,
    unknown_studies_are_refused,
    close_ends_its_jobs,
)
