"""Study files of every format say the same, and every mistake in one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmquant.call import Call
from llmquant.errors import OptionError, RequestErrors, UnknownNameError
from llmquant.experiment import ModelRequest
from llmquant.study import Study

STUDY = Study(
    (ModelRequest("./smollm2"), ModelRequest("org/name@main", trust_remote_code=True)),
    (Call("bf16_baseline"), Call("bnb_4bit", (), {"quant_type": "fp4", "double_quant": False})),
    (Call("lm_eval", ("coqa",), {"gen_kwargs": {"max_gen_toks": 32}}), Call("latency", (), {"prompt_tokens": [128]})),
    "bf16_baseline",
    None,
    7,
)


@pytest.mark.parametrize("ending", ["toml", "yaml", "json"])
def test_a_study_survives_being_written_and_read(tmp_path: Path, ending: str):
    """Every field comes back, in every format."""
    STUDY.to_file(tmp_path / f"study.{ending}")
    assert Study.from_file(tmp_path / f"study.{ending}") == STUDY


def test_tables_with_a_name_are_calls(tmp_path: Path):
    """A quantizer may be a table with its options."""
    file = tmp_path / "study.toml"
    file.write_text('models = ["./m"]\nquantizers = [{ name = "gptq_4bit_g128", calibration = "calib.txt" }]\n')
    assert Study.from_file(file).quantizers == (Call("gptq_4bit_g128", (), {"calibration": "calib.txt"}),)


def test_every_mistake_is_told_at_once():
    """A misspelt key, a wrong limit and a nameless quantizer come in one error."""
    with pytest.raises(RequestErrors) as caught:
        Study.from_json({"model": ["x"], "limit": "ten", "quantizers": [{"bits": 4}]})
    text = str(caught.value)
    assert "'models'" in text
    assert "limit" in text
    assert "bits" in text


def test_a_misspelt_key_gets_its_nearest_name():
    """One mistake is raised by itself."""
    with pytest.raises(UnknownNameError, match="evaluatrs") as caught:
        Study.from_json({"models": ["x"], "evaluatrs": []})
    assert "evaluators" in caught.value.hint


def test_yaml_tags_construct_nothing(tmp_path: Path):
    """The safe loader refuses Python objects."""
    file = tmp_path / "study.yaml"
    file.write_text("models: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(OptionError, match="cannot be parsed"):
        Study.from_file(file)


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path):
    """A format is never guessed."""
    file = tmp_path / "study.ini"
    file.write_text("")
    with pytest.raises(OptionError) as caught:
        Study.from_file(file)
    assert ".toml" in caught.value.hint
