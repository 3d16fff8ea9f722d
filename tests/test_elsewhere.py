"""Jobs that are paid for and go on without their program: asked about first, found again, told what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import llmquant as lq
from llmquant import api
from llmquant.executors.local.executor import LocalExecutor
from llmquant.planning.resolve import Planned, resolve
from llmquant.plugins.executor import Offer
from llmquant.plugins.registry import registry
from llmquant.running.scheduler import Scheduler
from llmquant.storage.cache import Cache
from llmquant.study.job import Job
from misbehaving_studies import Here, misbehaving

__all__ = ["misbehaving"]  # a fixture


class Rented(LocalExecutor):
    """This machine at two dollars a job; its jobs can be taken up by another executor of this name."""

    name = "rented"
    outlives = True

    def __init__(self, *, agreed: bool = True, slots: int = 1) -> None:
        super().__init__(device="cpu", threads=1)
        self.agreed, self.room = agreed, slots
        self.checked: list[Job] = []
        self.submitted: list[str] = []
        self.left: list[object] = []

    @property
    def slots(self) -> int:
        return self.room

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer:
        self.checked += jobs
        return Offer(f"{len(jobs)} jobs, at most ${2 * len(jobs)}", 2.0 * len(jobs), self.agreed)

    def submit(self, job: Path, store: Path) -> str:
        self.submitted.append(super().submit(job, store))
        return self.submitted[-1]

    def dollars(self, job_id: str) -> float:
        return 1.5

    def leave(self, job_id: str) -> None:
        self.left.append(self._workers.pop(job_id))

    def recall(self, study: str, store: Path) -> None:
        raise lq.errors.StoreError(f"rented keeps no study {study}")


class RentedHere(Rented):
    """Does its jobs in this process."""

    collect, cancel = Here.collect, Here.cancel

    def submit(self, job: Path, store: Path) -> str:
        self.submitted.append(Here.submit(self, job, store))
        return self.submitted[-1]


def planned(tiny_model: Path, executor: Rented, *evaluators: str, quantizers: Sequence[str] = ()) -> Planned:
    study = lq.Study.of(str(tiny_model), quantizers or ["fp32_baseline"], evaluators)
    return resolve(study, registry(), Cache.default(), executor)


def jobs_of(executor: Rented, tiny_model: Path, tmp_path: Path, *evaluators: str, **changes) -> list[list[str]]:
    """Say which evaluators would be in which job."""
    what = planned(tiny_model, executor, *evaluators, **changes)
    Scheduler(what, registry(), lq.Store(tmp_path / "store"), executor).check()
    return [[e["evaluator"]["label"] for e, _ in job.experiments] for job in executor.checked]


def test_nothing_starts_until_somebody_agrees_to_what_it_may_cost(
    tiny_model: Path, tmp_path: Path, without_functions: None
):
    """From Python a refusal names the amount, and where somebody can be asked the answer counts.

    What it cost in the end is shared out among the runs, and kept.
    """
    executor, store = RentedHere(agreed=False), tmp_path / "store"
    tasks = ["misbehave(not, tag=a)", "misbehave(not, tag=b)"]
    with pytest.raises(lq.errors.RequestError, match=r"1 jobs, at most \$2") as caught:
        lq.compare(tiny_model, ["fp32_baseline"], tasks, executor=executor, store=store)
    assert "budget=" in caught.value.hint
    assert executor.submitted == []
    assert not store.exists()
    asked = []

    class Agrees(api.Quiet):
        def agree(self, offer: Offer) -> bool:
            asked.append(offer.dollars)
            return True

    study = lq.Study.of(str(tiny_model), ["fp32_baseline"], tasks)
    found = lq.run_study(study, executor=executor, store=store, ui=Agrees())
    assert asked == [2.0]
    assert [run.status for run in found.runs.values()] == ["completed"] * 2
    assert {run.provenance["executor"] for run in found.runs.values()} == {"rented"}
    assert set(found.dollars) == set(found.runs)
    assert sum(found.dollars.values()) == pytest.approx(1.5)
    assert "About $1.50 in total" in found.to_text()
    assert {row.dollars for row in found.rows()} == set(found.dollars.values())
    assert lq.Comparison.from_store(store).dollars == found.dollars
    found.save_json(tmp_path / "study.json")
    assert lq.Comparison.load(tmp_path / "study.json").dollars == found.dollars
    executor.checked.clear()
    lq.run_study(study, executor=executor, store=store)
    assert executor.checked == []  # all is stored: there is nothing to agree to


def test_a_study_that_was_left_is_waited_for_by_its_id(tiny_model: Path, tmp_path: Path):
    """`submit_study` returns while its jobs go on, more than there are slots; another executor brings them home."""
    first = Rented()
    study = lq.Study.of(str(tiny_model), ["fp32_baseline", "bf16_baseline"], ["misbehave"])
    study_id = lq.submit_study(study, executor=first, store=tmp_path / "store").study_id
    first.close()
    assert len(first.submitted) == 2
    second = Rented()
    found = lq.attach(study_id, executor=second, store=tmp_path / "store")
    assert [run.status for run in found.runs.values()] == ["completed"] * 2
    assert second.submitted == []
    with pytest.raises(lq.errors.StoreError, match="keeps no study"):
        lq.attach("other", executor=second, store=tmp_path / "store")
    with pytest.raises(lq.errors.RequestError, match="end with the program"):
        lq.submit_study(study, executor="local(device=cpu)", store=tmp_path / "store")


def test_the_same_study_takes_up_what_still_runs(tiny_model: Path, tmp_path: Path):
    """The command that is given again starts nothing twice; Ctrl-C leaves the jobs if that is the answer."""
    first, marker = Rented(), tmp_path / "marker"
    what = planned(tiny_model, first, f"misbehave(sleep, marker={marker})", "misbehave(not, tag=other)")

    def interrupt(progress: object) -> None:
        if marker.exists():
            raise KeyboardInterrupt

    def kill(progress: object) -> None:
        second.cancel(first.submitted[0])

    scheduler = Scheduler(what, registry(), store := lq.Store(tmp_path / "store"), first)
    store.write_study(what.record.study_id, what.record.to_json())
    with pytest.raises(KeyboardInterrupt):
        scheduler.run(interrupt)
    assert scheduler.stop(cancel=False) == 1
    first.close()
    second = Rented()
    again = Scheduler(what, registry(), store, second)
    again.take_up()
    runs = {run.experiment.evaluator.label: run for run in again.run(kill).values()}
    assert marker.read_text().split() == ["sleep"]
    assert runs[f"misbehave(sleep, marker={marker})"].failure.kind == "lost"
    assert runs["misbehave(not, tag=other)"].status == "completed"
    assert len(second.submitted) == 1


def test_free_slots_share_the_tasks_of_one_model(tiny_model: Path, tmp_path: Path):
    """Hardware experiments and what shares a checkpoint that is made first stay together; the rest is spread."""
    tasks = ["misbehave(not, tag=a)", "misbehave(not, tag=b)", "misbehave(not, tag=c)"]
    assert jobs_of(Rented(), tiny_model, tmp_path, *tasks) == [tasks]
    assert sorted(map(len, jobs_of(Rented(slots=2), tiny_model, tmp_path, *tasks))) == [1, 2]
    assert jobs_of(Rented(slots=5), tiny_model, tmp_path, *tasks) == [[task] for task in sorted(tasks)]
    hardware = jobs_of(Rented(slots=5), tiny_model, tmp_path, "memory", "throughput(batches=1)", tasks[0])
    assert sorted(hardware, key=len) == [[tasks[0]], ["memory", "throughput(batches=1)"]]
