"""A model's small files and generation settings are checked before its weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

import llmquant as lq
from edits import edit_json
from llmquant.evaluators.lm_eval.generation import LENGTHS, wrong_settings
from llmquant.loading.small_files import check_small_files
from llmquant.models.info import ModelInfo
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest


def inspected(folder: Path, tmp_path: Path) -> ModelInfo:
    return inspect_subject(ModelRequest(str(folder)), registry(), Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", None, "has no tokenizer that transformers can load"),
        ("tokenizer.json", "{}", "has no tokenizer that transformers can load"),
        ("tokenizer_config.json", "{oops", "has no tokenizer that transformers can load"),
        ("generation_config.json", "{oops", "generation_config.json cannot be read"),
    ],
)
def test_a_damaged_small_file_costs_no_weights(folder: Path, tmp_path: Path, file: str, content: str | None, said: str):
    """The weights, which are not there at all by then, are not looked at."""
    info = inspected(folder, tmp_path)
    next(folder.glob("*.safetensors")).unlink()
    check_small_files(info, Cache(tmp_path / "cache"))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(lq.errors.ModelError, match=said):
        check_small_files(info, Cache(tmp_path / "cache"))


def test_a_configuration_that_transformers_refuses_costs_no_weights(folder: Path, tmp_path: Path):
    """What only transformers can find is found before the tokenizer and the weights are read."""
    edit_json(folder / "config.json", num_attention_heads=3)
    with pytest.raises(lq.errors.ModelError, match=r"(?s)cannot load .* not a multiple of the number of"):
        check_small_files(inspected(folder, tmp_path), Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_gen_tokens": 3}, "there is no setting 'max_gen_tokens'"),
        ({"temperature": "hot"}, "temperature must be a number, found 'hot'"),
        ({"temperature": 0, "do_sample": True}, "temperature must be above 0, found 0"),
        ({"temperature": -1}, "temperature must be above 0, found -1"),
        ({"top_k": 1.5}, "top_k must be a whole number, found 1.5"),
        ({"do_sample": 1}, "do_sample must be true or false, found 1"),
        ({"until": ["\n", 5]}, "until must be a text or a list of texts"),
    ],
)
def test_a_wrong_generation_setting_is_refused_before_anything_is_loaded(settings: dict[str, object], said: str):
    """By its name or its value."""
    (error,) = wrong_settings(settings)
    assert said in error.message


def test_right_generation_settings_are_taken():
    """Those of lm-eval, those of transformers, and greedy answers at temperature 0."""
    settings = {"until": "\n", "do_sample": False, "temperature": 0.0, "top_p": 1, "num_beams": 2, "penalty_alpha": 0.1}
    assert not list(wrong_settings({**settings, **dict.fromkeys(LENGTHS, 8)}))


@pytest.mark.parametrize("more", ['max_length=64, gen_kwargs={"max_gen_toks": 64}', "max_length=16"])
def test_answers_longer_than_prompt_and_answer_are_refused(folder: Path, tmp_path: Path, more: str):
    """Whether the length is asked for or is the task's own."""
    options = registry().choose("evaluator", Call.parse(f"lm_eval(coqa, {more})")).options
    with pytest.raises(lq.errors.OptionError, match=r"asks for answers of .* tokens, but prompt and answer have"):
        options.check(inspected(folder, tmp_path), "cpu")


@pytest.mark.parametrize(("name", "said"), [("empty.txt", "is empty"), ("folder", "is a folder")])
def test_a_text_that_is_there_is_not_called_missing(folder: Path, tmp_path: Path, name: str, said: str):
    """An empty file and a folder are named as such."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    options = registry().choose("evaluator", Call.parse(f"perplexity({tmp_path / name})")).options
    with pytest.raises(lq.errors.OptionError, match=said):
        options.check(inspected(folder, tmp_path), "cpu")


def test_a_checkpoint_that_cannot_be_written_costs_no_loading(folder: Path):
    """The folder above is tried first."""
    (folder / "file").touch()
    with pytest.raises(lq.errors.RequestError, match="cannot write to"):
        lq.quantize(str(folder), "fp32_baseline", folder / "file" / "out", device="cpu")


def test_one_model_whose_calibration_text_is_missing_is_refused_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in a study, the file that can be given instead is named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(lq.errors.OptionError, match="use a local file: calibration=FILE"):
        lq.quantize(str(folder), "gptq(group_size=32)", tmp_path / "out", device="cpu")
