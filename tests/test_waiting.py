"""A wait is visible, and while nobody knows how long something takes, no remaining time is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llmquant.running.host_lock import host_lock
from llmquant.running.progress import ActiveJob, progress
from llmquant.storage.cache import Cache
from llmquant.study.job import Job
from llmquant.study.record import StudyRecord
from made_up import BASELINE, completed, experiment

DONE, MISSING = experiment(BASELINE, "perplexity"), experiment("bnb_4bit_nf4", "perplexity")
RECORD = StudyRecord("study", "title", (DONE, MISSING), {})


def active(**changes: object) -> ActiveJob:
    job = Job("study", 1, {}, ((MISSING.to_json(), 1),))
    return ActiveJob(job, "1", Path("job.json"), [MISSING], {MISSING.run_id: 1}, **changes)


def test_no_remaining_time_is_shown_while_a_model_is_quantized():
    """What an evaluator took says nothing about a quantization; the estimate is there again with the loaded model."""
    runs = {DONE.run_id: completed(DONE)}
    quantizing = progress(RECORD, {}, runs, [active(done=1, total=4)])
    assert quantizing.running[0].label == "bnb_4bit_nf4 · quantizing"
    assert quantizing.remaining_s is None
    assert progress(RECORD, {}, runs, [active(loaded=True, current=MISSING.run_id)]).remaining_s is not None


HOLD = """
import sys
from pathlib import Path
from llmquant.running.host_lock import host_lock
from llmquant.storage.cache import Cache

with host_lock(Cache(Path(sys.argv[1])), exclusive=True, who="study abc: bnb_8bit · latency"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_study_that_waits_says_who_holds_the_machine(tmp_path: Path):
    """The holder's pid, study and experiment are known while it runs, and forgotten when it is done."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    told: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"

        def waiting(holders: str) -> None:
            told.append(holders)
            other.stdin.close()

        with host_lock(Cache(tmp_path), exclusive=False, who="mine", waiting=waiting):
            assert told == [f"pid {other.pid} (study abc: bnb_8bit · latency)"]
    assert not [path for path in Cache(tmp_path).host_lock().parent.iterdir() if path.suffix[1:].isdecimal()]


def test_no_remaining_time_is_shown_while_a_job_waits():
    """The line of the job names what it waits for instead."""
    waits = progress(RECORD, {}, {DONE.run_id: completed(DONE)}, [active(loaded=True, waiting="pid 7 (study abc: x)")])
    assert waits.running[0].label == "bnb_4bit_nf4 · waits for pid 7 (study abc: x)"
    assert waits.remaining_s is None
