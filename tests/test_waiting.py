"""While nobody knows how long something takes, no remaining time is shown."""

from __future__ import annotations

from pathlib import Path

from llmquant.running.progress import ActiveJob, progress
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
