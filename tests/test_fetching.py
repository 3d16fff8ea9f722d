"""Data is fetched before weights: data that is not available costs no loading of a model, and is tried once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError

import llmquant as lq
from llmquant.evaluators.hub_data import not_fetched
from llmquant.plugins.context import Context
from llmquant.plugins.registry import registry
from llmquant.running import worker
from llmquant.running.fetching import fetch
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, Experiment, Variant
from made_up import MODEL
from misbehaving_studies import Here, misbehaving

__all__ = ["misbehaving"]  # a fixture

TEXT = "perplexity(org/texts:en:test:text)"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)


class Elsewhere(Here):
    """Runs jobs here like an executor whose machines may have rows that this one does not have."""

    installs = True

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0

    def submit(self, job: Path, store: Path) -> str:
        self.jobs += 1
        return super().submit(job, store)


def experiments(*evaluators: str, quantizer: str = "fp32_baseline") -> list[Experiment]:
    variant = Variant(MODEL, registry().choose("quantizer", Call.parse(quantizer)).use)
    calls = [registry().choose("evaluator", Call.parse(each)).use for each in evaluators]
    return [Experiment(variant, use, Documents(5), 0, None) for use in calls]


def test_data_that_is_not_available_is_tried_once_and_loads_no_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The experiments of all variants have failed after one job, whose worker has not touched the weights."""
    monkeypatch.setattr(worker, "_load", lambda *rest: pytest.fail("the model was loaded"))
    executor = Elsewhere()
    variants = ["fp32_baseline", "bf16_baseline", "bnb_4bit_nf4"]
    found = lq.compare(str(tiny_model), variants, TEXT, executor=executor, store=tmp_path, progress=False)
    assert executor.jobs == 1
    assert [run.failure.kind for run in found.runs.values()] == ["data"] * 3
    assert {run.failure.message for run in found.runs.values()} == {
        f"{TEXT}: the rows of org/texts are not in the local cache, and the Hub cannot be reached: Cannot reach "
        "https://huggingface.co: offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` "
        "environment variable.\nGo online once, or use a local file: perplexity(FILE.txt)."
    }
    said = [record.getMessage() for record in caplog.records if record.name == "llmquant.running.scheduler"]
    assert said[1:] == [f"{name} · {TEXT} failed: same cause as fp32_baseline · {TEXT}" for name in variants[1:]]
    assert found.to_markdown().count("the Hub cannot be reached") == 1


def test_the_other_experiments_of_the_model_run(tiny_model: Path, tmp_path: Path):
    """Only what reads the missing data has failed, and the next run of the same command tries it again."""
    store = tmp_path / "store"
    for _ in range(2):
        found = lq.compare(
            str(tiny_model), "fp32_baseline", [TEXT, "misbehave"], executor=Elsewhere(), store=store, progress=False
        )
        runs = {run.experiment.evaluator.label: run for run in found.runs.values()}
        assert (runs[TEXT].status, runs["misbehave"].status) == ("failed", "completed")
    assert runs[TEXT].attempt == 2


def test_what_is_in_the_local_cache_is_not_read_twice(context: Callable[..., Context], tmp_path: Path):
    """Rows that the evaluator will find are left to it; here the cache has only their description."""
    made = tmp_path / "home" / "datasets" / "org___texts" / "en" / "0.0.0" / "0a1b"
    made.mkdir(parents=True)
    asked = experiments(TEXT)
    assert list(fetch(asked, context())) == [asked[0].run_id]
    (made / "dataset_info.json").write_text('{"splits": {"test": {}}, "features": {"text": {}}}')
    assert fetch(asked, context()) == {}


def test_a_calibration_text_that_is_not_available_ends_the_job_before_anything_is_imported(
    context: Callable[..., Context],
):
    """None of the variant's experiments can run, whatever it reads itself."""
    with pytest.raises(lq.errors.OptionError, match="gptq_4bit_g128: the rows of allenai/c4 are not"):
        fetch(experiments("memory", quantizer="gptq_4bit_g128"), context())


def test_a_hub_that_does_not_answer_is_a_failure_to_fetch(monkeypatch):
    """With either of the libraries that the Hub's client uses, by its version; a task's own mistake is none."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HTTPError) as refused:
        HfApi("http://127.0.0.1:9").dataset_info("org/texts")
    assert not_fetched(refused.value)
    assert not not_fetched(KeyError("question"))
