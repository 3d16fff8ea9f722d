"""What every executor promises, as tests: subclass `ExecutorContract` and give `make`, an executor's call in Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import llmquant as lq
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import registry
from llmquant.storage.journal import JobRecord, log_path, read_journal
from llmquant.storage.store import write_json
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.job import Job
from misbehaving_studies import wait_until

HERE = Path(__file__).parent
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
GOOD, RAISES, DIES = "0", "10", "49"
HOW = {RAISES: "raise", DIES: "exit"}

SECOND = """
import sys, time
from pathlib import Path
{make}
store = Path(sys.argv[2])
for _ in range(100):
    state = executor.collect(sys.argv[1], store)
    if state == "running":
        break
    time.sleep(0.1)
print("state:", state)
executor.cancel(sys.argv[1])
executor.close()
"""

LEAVES = """
import sys
from pathlib import Path
{make}
record, store = map(Path, sys.argv[1:])
job_id = executor.submit(record, store)
executor.leave(job_id)
executor.close()
print("left:", job_id)
"""


def with_token(store: Path) -> list[str]:
    files = [path for path in store.rglob("*") if path.is_file()]
    return [path.name for path in files if TOKEN.encode() in path.read_bytes()]


@dataclass(frozen=True)
class Study:
    """What a study gave, by the tag of the evaluator, and how many of its jobs ran at the same time."""

    runs: dict[str, lq.Run]
    most_at_a_time: int


class ExecutorContract:
    """Tests that hold for every executor.

    Attributes:
        make: Python lines that leave an executor in ``executor``; a second process runs them too.
    """

    make: str

    @pytest.fixture(scope="class")
    @classmethod
    def room(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """Make a folder, and let this process and its workers import the misbehaving evaluator."""
        room = tmp_path_factory.mktemp("contract")
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(HERE))
            patch.setenv("PYTHONPATH", str(HERE))
            patch.setenv("LLMQUANT_CACHE", str(room / "cache"))
            import misbehaving

            before = list(registry().plugins)
            lq.register(misbehaving.SPEC)
            yield room
            registry().plugins = before

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, room: Path) -> Iterator[Executor]:
        found: dict[str, Executor] = {}
        exec(cls.make, found)
        yield found["executor"]
        found["executor"].close()

    @pytest.fixture(scope="class")
    @classmethod
    def study(cls, executor: Executor, room: Path, tiny_model: Path) -> Study:
        """Run one study of fifty experiments; one raises and one ends its process."""
        at_a_time, running, submit = [], set(), executor.submit

        def counted(job: Path, store: Path) -> str:
            job_id = submit(job, store)
            running.difference_update([j for j in running if executor.collect(j, store) in ("ended", "lost")])
            running.add(job_id)
            at_a_time.append(len(running))
            return job_id

        evaluators = [f"misbehave({HOW.get(n, 'not')}, marker={room / 'marker'}, tag={n})" for n in map(str, range(50))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "submit", counted)
            found = lq.compare(
                str(tiny_model),
                ["fp32_baseline"],
                evaluators,
                executor=executor,
                store=room / "store",
                progress=False,
            )
        return Study({run.experiment.evaluator.options["tag"]: run for run in found.runs.values()}, max(at_a_time))

    @pytest.fixture(scope="class")
    @classmethod
    def sleepers(cls, study: Study, executor: Executor, room: Path) -> list[tuple[str, Path]]:
        """Submit two jobs that sleep, without a scheduler; give their ids and their records when both do."""
        records = [write_job(study, executor, room, tag, how="sleep")[0] for tag in ("first", "second")]
        found = [(executor.submit(record, room / "store"), record) for record in records]

        def sleep() -> bool:
            assert {executor.collect(job_id, room / "store") for job_id, _ in found} <= {"queued", "running"}
            return all(log_path(r).exists() and b"hf_***" in log_path(r).read_bytes() for r in records)

        wait_until(sleep)
        return found

    def test_what_can_completes(self, study: Study):
        """What goes wrong beside an experiment changes nothing about it."""
        assert {tag for tag, run in study.runs.items() if run.status == "failed"} == {RAISES, DIES}
        assert len(study.runs) == 50
        good = [run.measurements for tag, run in study.runs.items() if tag not in HOW]
        assert good == good[:1] * 48

    def test_as_many_jobs_run_as_there_are_slots(self, study: Study, executor: Executor):
        """Never more, and no slot is idle while there is something to do."""
        assert study.most_at_a_time == executor.slots

    def test_an_exception_is_told(self, study: Study):
        """The failure has the exception's message and its traceback."""
        failure = study.runs[RAISES].failure
        assert failure.kind == "error"
        assert "this evaluator raises" in failure.message
        assert "Traceback" in failure.log_tail

    def test_a_dead_worker_is_told(self, study: Study):
        """The failure says how it ended and has its log's tail."""
        failure = study.runs[DIES].failure
        assert failure.kind == "lost"
        assert "exit code 3" in failure.message
        assert "about to misbehave" in failure.log_tail

    def test_a_token_in_a_log_is_never_stored(self, study: Study, room: Path, capfd: pytest.CaptureFixture[str]):
        """It is in no file of the store and was not printed."""
        logs = [path.read_bytes() for path in (room / "store").glob("**/*.log")]
        assert any(b"hf_***" in log for log in logs)
        assert with_token(room / "store") == []
        assert TOKEN not in "".join(capfd.readouterr())

    def test_a_study_goes_on_where_it_stopped(self, study: Study, executor: Executor, room: Path, tiny_model: Path):
        """What completed is not run again, and a hang ends at the timeout."""
        marker = room / "marker"
        good = f"misbehave(not, marker={marker}, tag={GOOD})"
        hang = f"misbehave(sleep, marker={marker}, tag=hang)"
        found = lq.compare(
            str(tiny_model),
            ["fp32_baseline"],
            [good, hang],
            executor=executor,
            store=room / "store",
            progress=False,
            timeout_s=6,
        )
        runs = {run.experiment.evaluator.label: run for run in found.runs.values()}
        assert runs[hang].failure.kind == "timeout"
        assert runs[good] == study.runs[GOOD]

    def test_cancel_ends_the_worker(self, sleepers, executor: Executor, room: Path):
        """When `cancel` returns, no process of the job is left; what it wrote is here, without tokens at any time."""
        job_id, record = sleepers[0]
        assert with_token(room / "store") == []
        executor.cancel(job_id)
        assert workers(record) == []
        assert "started" in [entry.event for entry in read_journal(record, 0)[0]]
        assert "about to misbehave with hf_***" in log_path(record).read_text()
        assert executor.collect(job_id, room / "store") == "lost"

    def test_a_second_process_finds_a_job_by_its_id(self, sleepers, executor: Executor, room: Path):
        """It sees that the job runs and may cancel it."""
        job_id, record = sleepers[1]
        second = subprocess.run(
            [sys.executable, "-c", SECOND.format(make=self.make), job_id, str(room / "store")],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "state: running" in second.stdout, second.stderr
        wait_until(lambda: workers(record) == [] and executor.collect(job_id, room / "store") in ("lost", "ended"))

    def test_a_job_that_was_left_goes_on(self, study: Study, executor: Executor, room: Path):
        """The program that submitted it has ended; its runs come home to another."""
        if not executor.outlives:
            pytest.skip("jobs end with the program")
        record, run_id = write_job(study, executor, room, "left", how="not")
        arguments = [sys.executable, "-c", LEAVES.format(make=self.make), str(record), str(room / "store")]
        first = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        assert "left: " in first.stdout, first.stderr
        job_id = first.stdout.rpartition("left: ")[2].strip()
        wait_until(lambda: executor.collect(job_id, room / "store") == "ended")
        assert lq.Store(room / "store").run(run_id).status == "completed"

    def test_a_study_that_is_not_here_is_refused(self, executor: Executor, room: Path):
        """What the executor does not know it cannot bring."""
        with pytest.raises(lq.errors.StoreError, match="nosuchstudy"):
            executor.recall("nosuchstudy", room / "store")


def write_job(study: Study, executor: Executor, room: Path, tag: str, *, how: str) -> tuple[Path, RunId]:
    """Write the record of a job, without a scheduler; return where, and the id of its one run."""
    import misbehaving

    store, run = lq.Store(room / "store"), study.runs[GOOD]
    data = run.experiment.to_json()
    options = {**data["evaluator"]["options"], "how": how, "marker": str(room / f"marker-{tag}"), "tag": tag}
    data["evaluator"] = {**data["evaluator"], "options": options}
    study_id = store.studies()[-1]
    number, record = store.new_job(study_id)
    spec, model = vars(misbehaving.SPEC), data["model"]
    job = Job(study_id, number, model, ((data, 1),), {}, executor.device, 1, (spec,), executor.name)
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
