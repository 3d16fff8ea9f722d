"""An executor without processes: a test says what each job's worker does, look by look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmquant.plugins.executor import JobState, Offer
from llmquant.storage.journal import JobRecord, Journal
from llmquant.storage.store import Store
from llmquant.study.experiment import Experiment
from llmquant.study.job import Job
from llmquant.study.run import Run

NOW = "2026-11-20T10:00:00.000+00:00"


@dataclass
class Worker:
    """What the worker of one job can do."""

    record: Path
    store: Path
    job: Job = field(init=False)
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.job, self.journal = JobRecord.read(self.record).job, Journal(self.record)

    @property
    def tags(self) -> list[str]:
        return [data["evaluator"]["label"] for data, _ in self.job.experiments]

    def load(self) -> None:
        self.journal.write("loading")
        self.journal.write("loaded")

    def begin(self, tag: str) -> None:
        self.journal.write("started", self._of(tag)[0].run_id)

    def finish(self, tag: str) -> None:
        experiment, attempt = self._of(tag)
        store = Store(self.store)
        run = Run(experiment, "completed", (), None, {}, NOW, NOW, attempt=attempt)
        store.commit(run, store.begin(), {})
        self.journal.write("finished", experiment.run_id)

    def do(self, *tags: str) -> None:
        for tag in tags:
            self.begin(tag)
            self.finish(tag)

    def _of(self, tag: str) -> tuple[Experiment, int]:
        pairs = [(Experiment.from_json(data), attempt) for data, attempt in self.job.experiments]
        return next(pair for pair in pairs if pair[0].evaluator.label == tag)


Script = Callable[[Worker], Iterator[JobState]]


class MemoryExecutor:
    """Runs scripts: each `collect` is one step of a job's script, whose last state stays.

    Args:
        scripts: of the jobs in the order in which they are submitted; the last one serves all further ones.
    """

    name = "memory"
    installs = False
    hardware = "none"
    device = "cpu"
    threads = 1
    notices = ()

    def __init__(self, *scripts: Script, slots: int = 1, outlives: bool = False) -> None:
        self.scripts, self.slots, self.outlives = list(scripts), slots, outlives
        self.workers: list[Worker] = []
        self.collected: list[str] = []
        self.cancelled: list[str] = []
        self.left: list[str] = []
        self.when_cancelled: Callable[[Worker], None] = lambda worker: None
        self._steps: dict[str, Iterator[JobState]] = {}
        self._states: dict[str, JobState] = {}

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer | None:
        return None

    def submit(self, job: Path, store: Path) -> str:
        job_id = f"own-{len(self.workers)}"
        self.workers.append(Worker(job, store))
        script = self.scripts[min(len(self.workers), len(self.scripts)) - 1]
        self._steps[job_id], self._states[job_id] = script(self.workers[-1]), "queued"
        return job_id

    def know(self, job_id: str, store: Path, script: Script) -> None:
        """Know a job that another program submitted."""
        record = next(r for r in Store(store).jobs("study") if JobRecord.read(r).job_id == job_id)
        self._steps[job_id], self._states[job_id] = script(Worker(record, store)), "queued"

    def collect(self, job_id: str, store: Path) -> JobState:
        self.collected.append(job_id)
        if job_id not in self._states:
            return "lost"
        self._states[job_id] = next(self._steps[job_id], self._states[job_id])
        return self._states[job_id]

    def why_lost(self, job_id: str) -> str:
        return "the worker crashed (signal 11)"

    def dollars(self, job_id: str) -> None:
        return None

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)
        if job_id.startswith("own-"):
            self.when_cancelled(self.workers[int(job_id.removeprefix("own-"))])
        self._states[job_id], self._steps[job_id] = "lost", iter(())

    def leave(self, job_id: str) -> None:
        self.left.append(job_id)

    def recall(self, study: str, store: Path) -> None: ...

    def close(self) -> None: ...
