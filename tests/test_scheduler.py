"""Whatever happens to a worker, only what was running is lost."""

from __future__ import annotations

from pathlib import Path

import llmquant as lq
from llmquant.plugins.executor import JobState
from llmquant.storage.journal import journal_path
from misbehaving_studies import Here, by_evaluator, compare, misbehaving, starts

__all__ = ["misbehaving"]  # a fixture


def test_an_exception_costs_one_experiment(tiny_model: Path, tmp_path: Path):
    """The others complete in the same process; the failure keeps its log's tail, with tokens blanked."""
    returning = "misbehave(return_objects)"
    found = compare(tiny_model, tmp_path, "misbehave(raise)", "misbehave(oom)", returning, "misbehave")
    runs = by_evaluator(found)
    assert "JSON" in runs[returning].failure.message
    assert runs["misbehave"].status == "completed"
    failure = runs["misbehave(raise)"].failure
    assert failure.kind == "error"
    assert "this evaluator raises" in failure.message
    assert "Traceback" in failure.log_tail
    assert "hf_***" in failure.log_tail
    assert "hf_abc" not in failure.log_tail
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.name for path in files if b"hf_abc" in path.read_bytes()] == []
    assert runs["misbehave(oom)"].failure.kind == "out_of_memory"


def test_a_crash_costs_one_experiment(tiny_model: Path, tmp_path: Path):
    """A worker that dies is replaced, and what it had not started runs in the new one."""
    marker = tmp_path / "marker"
    evaluators = [f"misbehave({how}, marker={marker}, tag={i})" for i, how in enumerate(["not", "exit", "not"])]
    runs = by_evaluator(compare(tiny_model, tmp_path, *evaluators))
    assert [runs[label].status for label in evaluators] == ["completed", "failed", "completed"]
    assert runs[evaluators[1]].failure.kind == "lost"
    assert "exit code 3" in runs[evaluators[1]].failure.message
    assert starts(marker) == ["not0", "exit1", "not2"]


def test_a_crash_costs_no_task_that_was_finished(tiny_model: Path, tmp_path: Path):
    """Numbers, samples and files of the tasks before the one that killed the worker are kept with its failure."""
    found = compare(tiny_model, tmp_path, "break(kill, after=2)")
    (run,) = found.runs.values()
    assert (run.status, run.failure.kind) == ("failed", "lost")
    assert "signal 9" in run.failure.message
    assert [m.task for m in run.measurements] == ["task0", "task1"]
    assert run.details["task0"] == {"answer": "hf_***"}
    stored = lq.Store(tmp_path / "store")
    assert {task: len(samples) for task, samples in stored.samples(run).items()} == {"task0": 2, "task1": 2}
    assert (stored.files(run) / "task0.txt").read_text() == "hf_***"
    names = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file() and b"hf_a" in path.read_bytes()]
    assert names == []
    assert not list((tmp_path / "store" / "runs").glob(".*"))


class _Silent(Here):
    """Dies after its last run is stored, before the journal says so."""

    def submit(self, job: Path, store: Path) -> str:
        job_id = super().submit(job, store)
        lines = journal_path(job).read_text().splitlines(keepends=True)
        last = max(number for number, line in enumerate(lines) if '"finished"' in line)
        journal_path(job).write_text("".join(lines[:last]))
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        return "lost"


def test_a_run_that_was_stored_is_completed_whatever_the_worker_could_still_say(
    tiny_model: Path, tmp_path: Path, without_functions: None
):
    """A worker that dies between the two has lost nothing."""
    found = compare(tiny_model, tmp_path, "misbehave", "misbehave(tag=2)", executor=_Silent())
    assert [run.status for run in found.runs.values()] == ["completed", "completed"]
    assert len(list((tmp_path / "store" / "runs").iterdir())) == 2


def test_completed_runs_are_reused_and_failed_ones_tried_again(
    tiny_model: Path, tmp_path: Path, without_functions: None
):
    """The second call starts only what failed; a new evaluator repeats no other; `fresh` repeats beside."""
    marker = tmp_path / "marker"
    good, bad = f"misbehave(not, marker={marker})", f"misbehave(raise, marker={marker})"
    compare(tiny_model, tmp_path, good, bad, executor=Here())
    again = compare(tiny_model, tmp_path, good, bad, f"misbehave(not, marker={marker}, tag=new)", executor=Here())
    assert sorted(starts(marker)) == ["not", "notnew", "raise", "raise"]
    assert by_evaluator(again)[bad].attempt == 2
    fresh = compare(tiny_model, tmp_path, good, fresh=True, executor=Here())
    assert by_evaluator(fresh)[good].attempt == 2
    assert lq.Store(tmp_path / "store").attempts(by_evaluator(fresh)[good].run_id) == [1, 2]


def test_a_model_that_does_not_load_fails_its_experiments_with_the_reason(tiny_model: Path, tmp_path: Path):
    """A shape that does not fit the configuration is reported; nothing is replaced by random weights."""
    import json
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    found = compare(broken, tmp_path, "misbehave", executor=Here())
    (run,) = found.runs.values()
    assert run.status == "failed"
    assert "weights have another shape than its configuration says" in run.failure.message
