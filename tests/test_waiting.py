"""A wait is visible, and while nobody knows how long something takes, no remaining time is shown."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmquant.planning.estimate import estimate_size
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.running.host_lock import host_lock
from llmquant.running.progress import ActiveJob, load_seconds, progress
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Experiment, ModelRequest, ModelUse
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
    quantizing = progress(RECORD, {}, runs, [active(done=1, total=4)], 0.0)
    assert quantizing.running[0].label == "bnb_4bit_nf4 · quantizing"
    assert quantizing.remaining_s is None
    assert progress(RECORD, {}, runs, [active(loaded=True, current=MISSING.run_id)], 0.0).remaining_s is not None


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


MAKE = """
import sys
from pathlib import Path
from llmquant.storage.cache import Cache

def make(folder):
    print("making", flush=True)
    sys.stdin.read()

Cache(Path(sys.argv[1]), who="study abc: gptq_4bit_g128").get("checkpoints", "key", make)
"""


def test_a_wait_for_a_file_that_another_study_makes_says_who_makes_it(tmp_path: Path):
    """The same checkpoint is calibrated once, and the second study names the first one meanwhile."""
    command = [sys.executable, "-c", MAKE, str(tmp_path)]
    told: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "making\n"

        def waiting(holders: str) -> None:
            told.append(holders)
            other.stdin.close()

        Cache(tmp_path, waiting=waiting).get("checkpoints", "key", lambda folder: pytest.fail("made twice"))
        assert told == [f"pid {other.pid} (study abc: gptq_4bit_g128)"]


@pytest.mark.parametrize(
    "other",
    [
        experiment(BASELINE, "perplexity", model=ModelUse("org/larger", "commit:1")),
        experiment(BASELINE, "perplexity", limit=5),
        experiment(BASELINE, "lm_eval(coqa)"),
    ],
    ids=["another model", "fewer documents", "another evaluator"],
)
def test_only_experiments_of_the_same_kind_predict_the_remaining_time(other: Experiment):
    """The time of a smaller model, of fewer documents or of another task is no estimate."""
    record = replace(RECORD, experiments=(other, MISSING))
    now = [active(loaded=True, current=MISSING.run_id)]
    assert progress(record, {}, {other.run_id: completed(other)}, now, 0.0).remaining_s is None


def test_jobs_beside_each_other_are_not_added():
    """A run takes 240 s and loading 10 s: four variants on two slots end after two of them, five after three."""
    presets = ("bnb_4bit_nf4", "bnb_4bit_fp4", "bnb_8bit", "hqq_4bit_g64", "torchao_int8")
    missing = [experiment(preset, "perplexity") for preset in presets]
    runs = {DONE.run_id: completed(DONE)}

    def left(count: int, slots: int, now: tuple[ActiveJob, ...] = ()) -> float | None:
        record = replace(RECORD, experiments=(DONE, *missing[:count]))
        return progress(record, {}, runs, now, 10.0 * (count - len(now)), slots).remaining_s

    assert [left(4, slots) for slots in (1, 2, 3, 8)] == [1000, 500, 500, 250]
    assert [left(count, 2) for count in (0, 1, 5)] == [0, 250, 750]
    running = active(loaded=True)  # its only experiment, and four variants that wait for this slot or the other one
    assert left(5, 2, (running,)) == 740
    assert left(1, 2, (running,)) == 240


def test_the_remaining_time_includes_loading_and_is_unknown_before_a_quantization():
    """A variant that is loaded takes as long as the model took before; how long a calibration takes is not known."""
    gptq = registry().choose("quantizer", Call.parse("gptq_4bit_g128")).use
    calibrated = replace(MISSING, variant=replace(MISSING.variant, quantizer=gptq))
    loads = {MISSING.variant.model.digest: 12.0}
    assert load_seconds([MISSING, MISSING], loads, registry()) == 12.0
    assert load_seconds([], {}, registry()) == 0.0
    assert load_seconds([MISSING], {}, registry()) is None
    assert load_seconds([calibrated], loads, registry()) is None


def test_the_memory_of_cuda_counts_on_a_gpu_alone(tiny_model: Path, tmp_path: Path):
    """On a CPU nothing of it is allocated; the GPUs that would fit are the same."""
    info = inspect_subject(ModelRequest(str(tiny_model)), registry(), Cache(tmp_path))
    chosen = registry().choose("quantizer", Call.parse("fp32_baseline"))
    here, there = (estimate_size(info, chosen, device) for device in ("cpu", "cuda"))
    assert there.peak_bytes - here.peak_bytes == 512 * 2**20
    assert here.gpus == there.gpus


def test_names_of_killed_holders_are_removed(tmp_path: Path):
    """Whoever locks the machine removes what processes left that were killed, and nothing of a running process."""
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        pass
    lock = Cache(tmp_path).host_lock()
    left, other = (lock.with_suffix(f".{pid}") for pid in (killed.pid, 1))
    left.touch()
    other.touch()
    with host_lock(Cache(tmp_path), exclusive=True):
        assert (left.exists(), other.exists()) == (False, True)


def test_no_remaining_time_is_shown_while_a_job_waits():
    """The line of the job names what it waits for instead."""
    done = {DONE.run_id: completed(DONE)}
    waits = progress(RECORD, {}, done, [active(loaded=True, waiting="pid 7 (study abc: x)")], 0.0)
    assert waits.running[0].label == "bnb_4bit_nf4 · waits for pid 7 (study abc: x)"
    assert waits.remaining_s is None
