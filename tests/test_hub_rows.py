"""Without the Hub, rows that are not here are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

import llmquant as lq
from llmquant.cli import app
from llmquant.planning.hub_rows import refuse_missing_rows
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)


def refused(tmp_path: Path, kind: str, call: str) -> str:
    """Return what is said of a call; empty if it is not refused."""
    chosen = registry().choose(kind, Call.parse(call))
    try:
        refuse_missing_rows([chosen], Cache(tmp_path / "cache"))
    except lq.errors.RequestError as error:
        return str(error)
    return ""


def test_the_default_command_without_the_hub_names_what_to_give_instead(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It ends with code 2 before a plan is shown or a store is made."""
    monkeypatch.setattr("sys.argv", ["llmquant", "compare", str(tiny_model), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "lm_eval(coqa): the rows of EleutherAI/coqa are not in the local cache" in said
    assert "lm_eval(coqa, data=FILE.jsonl)" in said
    assert "perplexity(FILE.txt)" in said
    assert "offline mode is enabled" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("kind", "call", "instead"),
    [
        ("evaluator", "perplexity(wikitext2)", "perplexity(FILE.txt)"),
        ("evaluator", "fidelity(org/texts:en:test:text)", "fidelity(FILE.txt)"),
        ("evaluator", "lm_eval(mmlu)", "lm_eval(mmlu_abstract_algebra, data=FILE.jsonl)"),
        ("quantizer", "gptq_4bit_g128", "calibration=FILE.txt"),
        ("quantizer", "awq(calibration=wikitext2)", "calibration=FILE.txt"),
        ("quantizer", "auto_round", "calibration=FILE.txt"),
    ],
)
def test_every_data_set_of_the_hub_is_refused_with_its_own_hint(tmp_path: Path, kind: str, call: str, instead: str):
    """Tasks, texts and calibration sets each have an option that reads a file."""
    assert f"use a local file: {instead}" in refused(tmp_path, kind, call)


@pytest.mark.parametrize("folder", ["EleutherAI___coqa/default", "org___my_texts/en"])
def test_rows_in_the_local_cache_are_not_refused(tmp_path: Path, folder: str):
    """The folders are those in which `datasets` keeps prepared rows."""
    call = "lm_eval(coqa)" if "coqa" in folder else "perplexity(org/MyTexts:en:test:text)"
    assert refused(tmp_path, "evaluator", call)
    made = tmp_path / "home" / "datasets" / folder / "0.0.0" / "0a1b"
    made.mkdir(parents=True)
    (made / "dataset_info.json").touch()
    assert not refused(tmp_path, "evaluator", call)


def test_local_rows_need_no_hub(tmp_path: Path):
    """Neither a file of text nor rows of a task are looked for elsewhere."""
    text = tmp_path / "text.txt"
    text.write_text("words " * 2000)
    assert not refused(tmp_path, "evaluator", f"perplexity({text})")
    assert not refused(tmp_path, "quantizer", f"gptq(calibration={text})")
    assert not refused(tmp_path, "evaluator", "memory")


def test_a_hub_that_answers_is_left_to_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows that can be fetched are not refused."""
    monkeypatch.setattr("llmquant.planning.hub_rows._unreachable", lambda: "")
    assert not refused(tmp_path, "evaluator", "perplexity")
