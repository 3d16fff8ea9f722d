"""The scheduler's result for each way in which a job can end, without a process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmquant.planning.resolve import Planned
from llmquant.plugins.executor import JobState
from llmquant.plugins.registry import registry
from llmquant.results.report.progress import headline
from llmquant.running.scheduler import Scheduler
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, Experiment, RunId, Variant
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from made_up import MODEL, evaluator
from memory_executor import MemoryExecutor, Worker

pytestmark = pytest.mark.usefixtures("no_waiting")


def planned(*tags: str) -> Planned:
    baseline = registry().choose("quantizer", Call.parse("fp32_baseline")).use
    experiments = tuple(Experiment(Variant(MODEL, baseline), evaluator(tag), Documents(5), 0, None) for tag in tags)
    return Planned(StudyRecord("study", "title", experiments, {}), {}, (), (), {})


def left_by_another(tmp_path: Path, *tags: str) -> None:
    """Have another program submit a study and leave it to go on."""
    first = MemoryExecutor(lambda worker: iter(()), outlives=True)
    assert scheduler(tmp_path, first, *tags).submit_all() == 0


def scheduler(tmp_path: Path, executor: MemoryExecutor, *tags: str, timeout_s: float | None = None) -> Scheduler:
    return Scheduler(planned(*tags), registry(), Store(tmp_path), executor, timeout_s=timeout_s)


def by_tag(runs: dict[RunId, Run]) -> dict[str, str]:
    return {r.experiment.evaluator.label: r.failure.kind if r.failure else r.status for r in runs.values()}


def completes(worker: Worker) -> Iterator[JobState]:
    worker.load()
    worker.do(*worker.tags)
    yield "ended"


def dies_in_the_second(worker: Worker) -> Iterator[JobState]:
    worker.load()
    worker.do(worker.tags[0])
    worker.begin(worker.tags[1])
    yield "lost"


def test_a_job_that_dies_costs_what_it_was_doing(tmp_path: Path):
    """What had finished counts, what was running has failed, and the rest runs in a new job."""
    executor = MemoryExecutor(dies_in_the_second, completes)
    runs = scheduler(tmp_path, executor, "a", "b", "c").run()
    assert by_tag(runs) == {"a": "completed", "b": "lost", "c": "completed"}
    assert [worker.tags for worker in executor.workers] == [["a", "b", "c"], ["c"]]


def test_a_job_that_dies_while_loading_is_not_tried_again(tmp_path: Path):
    """It would die again: all of its experiments have failed."""

    def dies(worker: Worker) -> Iterator[JobState]:
        worker.journal.write("loading")
        yield "lost"

    executor = MemoryExecutor(dies)
    assert by_tag(scheduler(tmp_path, executor, "a", "b").run()) == {"a": "lost", "b": "lost"}
    assert len(executor.workers) == 1


def test_a_job_that_ends_between_two_experiments_goes_on_in_another(tmp_path: Path):
    """The next one has failed, so that a job that ends at once is not started for ever."""

    def ends_early(worker: Worker) -> Iterator[JobState]:
        worker.load()
        worker.do(worker.tags[0])
        yield "ended"

    executor = MemoryExecutor(ends_early, completes)
    assert by_tag(scheduler(tmp_path, executor, "a", "b", "c").run()) == {
        "a": "completed",
        "b": "lost",
        "c": "completed",
    }


def hangs(worker: Worker) -> Iterator[JobState]:
    worker.load()
    worker.begin(worker.tags[0])
    yield "running"


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0], ids=["back", "ahead"])
def test_a_timeout_does_not_depend_on_the_clock_that_people_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
):
    """A clock set by a day while a study runs neither ends a healthy experiment nor keeps one that hangs."""
    real = time.time

    def steps(worker: Worker) -> Iterator[JobState]:
        worker.load()
        worker.begin(worker.tags[0])
        yield "running"
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        yield "running"
        worker.finish(worker.tags[0])
        worker.begin(worker.tags[1])
        yield "running"

    executor = MemoryExecutor(steps)
    runs = scheduler(tmp_path, executor, "a", "b", timeout_s=0.2).run()
    assert by_tag(runs) == {"a": "completed", "b": "timeout"}
    assert runs[planned("a").record.experiments[0].run_id].seconds == 0
    assert all(0 <= run.seconds < 60 for run in runs.values())


def test_time_in_a_queue_is_no_time_of_an_experiment(tmp_path: Path):
    """A job that waits longer than the timeout for its machine runs all the same."""

    def waits(worker: Worker) -> Iterator[JobState]:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            yield "queued"
        yield from completes(worker)

    assert by_tag(scheduler(tmp_path, MemoryExecutor(waits), "a", timeout_s=0.1).run()) == {"a": "completed"}


def test_time_in_which_a_job_waits_for_another_study_is_no_time_of_an_experiment(tmp_path: Path):
    """Neither while the model is loaded, whose checkpoint another study makes, nor before an experiment starts."""

    def waits(worker: Worker) -> Iterator[JobState]:
        worker.journal.write("loading")
        for event in ("loaded", "started"):
            worker.journal.write("waiting", who="pid 7 (study abc: x)")
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                yield "running"
            if event == "loaded":
                worker.journal.write("loaded")
        worker.do(*worker.tags)
        yield "ended"

    assert by_tag(scheduler(tmp_path, MemoryExecutor(waits), "a", timeout_s=0.2).run()) == {"a": "completed"}


def test_what_finishes_while_it_is_ended_has_not_failed(tmp_path: Path):
    """A run that was stored between the timeout and the end of its worker counts, and the rest continues."""
    executor = MemoryExecutor(hangs, completes)
    executor.when_cancelled = lambda worker: worker.finish(worker.tags[0])
    runs = scheduler(tmp_path, executor, "a", "b", timeout_s=0.05).run()
    assert by_tag(runs) == {"a": "completed", "b": "completed"}


def test_an_interrupted_study_keeps_what_finished(tmp_path: Path):
    """What was running is stored as cancelled; what had not started is not stored at all."""
    executor = MemoryExecutor(dies_in_the_second)
    executor.scripts = [lambda worker: iter(["running"] * 5)]
    study = scheduler(tmp_path, executor, "a", "b", "c")
    assert study.submit_all() == 0
    worker = executor.workers[0]
    worker.load()
    worker.do("a")
    worker.begin("b")
    assert study.stop(cancel=True) == 1
    assert by_tag(study.runs) == {"a": "completed", "b": "cancelled"}
    assert executor.cancelled == ["own-0"]


def test_a_failure_is_printed_when_it_happens_and_its_cause_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The second failure with the same cause names the first; both count as failed and not as done."""

    def dies(worker: Worker) -> Iterator[JobState]:
        worker.load()
        worker.begin(worker.tags[0])
        yield "lost"

    shown = []
    scheduler(tmp_path, MemoryExecutor(dies, dies), "a", "b").run(lambda state: shown.append(headline(state)))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("fp32_baseline · a failed: ")
    assert said[1:] == ["fp32_baseline · b failed: same cause as fp32_baseline · a"]
    assert shown[-1] == "0 of 2 experiments done, 2 failed"


def test_what_is_stored_is_not_run_again(tmp_path: Path):
    """The second study of the same experiments submits only the one that failed."""
    scheduler(tmp_path, MemoryExecutor(dies_in_the_second, completes), "a", "b", "c").run()
    executor = MemoryExecutor(completes)
    again = scheduler(tmp_path, executor, "a", "b", "c")
    assert by_tag(again.run()) == {"a": "completed", "b": "completed", "c": "completed"}
    assert [worker.tags for worker in executor.workers] == [["b"]]
    assert len(again.reused) == 2


def test_no_more_jobs_run_than_there_are_slots(tmp_path: Path):
    """And with two slots the work of one model is shared between them."""
    executor = MemoryExecutor(completes, slots=2)
    assert set(by_tag(scheduler(tmp_path, executor, "a", "b", "c", "d").run()).values()) == {"completed"}
    assert sorted(worker.tags for worker in executor.workers) == [["a", "b"], ["c", "d"]]


def test_asking_touches_no_job(tmp_path: Path):
    """Constructing, a price and a preview know what is submitted from its records alone."""
    left_by_another(tmp_path, "a", "b")
    executor = MemoryExecutor(completes, outlives=True)
    study = scheduler(tmp_path, executor, "a", "b")
    assert (study.check(), study.jobs()) == (None, [])
    executor.close()
    assert (executor.collected, executor.cancelled, executor.workers) == ([], [], [])


def test_what_another_program_submitted_is_taken_up(tmp_path: Path):
    """It is waited for, and not submitted again."""
    left_by_another(tmp_path, "a", "b")
    executor = MemoryExecutor(outlives=True)
    executor.know("own-0", tmp_path, completes)
    study = scheduler(tmp_path, executor, "a", "b")
    assert not study.take_up()
    assert by_tag(study.run()) == {"a": "completed", "b": "completed"}
    assert executor.workers == []


def test_a_lost_job_of_another_program_is_priced_again(tmp_path: Path):
    """What it had finished counts; the rest is missing once that is known, and runs in a new job."""
    left_by_another(tmp_path, "a", "b")
    record = Store(tmp_path).jobs("study")[0]
    Worker(record, tmp_path).do("a")
    executor = MemoryExecutor(completes, outlives=True)
    study = scheduler(tmp_path, executor, "a", "b")
    assert study.jobs() == []
    assert study.take_up()
    assert [[e["evaluator"]["label"] for e, _ in job.experiments] for job in study.jobs()] == [["b"]]
    assert by_tag(study.run()) == {"a": "completed", "b": "completed"}
    assert [worker.tags for worker in executor.workers] == [["b"]]


def test_jobs_that_are_left_are_not_cancelled(tmp_path: Path):
    """After taking up, an error or an answer leaves what runs to whoever comes next."""
    left_by_another(tmp_path, "a")
    executor = MemoryExecutor(outlives=True)
    executor.know("own-0", tmp_path, hangs)
    study = scheduler(tmp_path, executor, "a")
    study.take_up()
    assert study.stop(cancel=False) == 1
    assert (executor.left, executor.cancelled) == (["own-0"], [])
