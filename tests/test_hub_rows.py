"""Without the Hub, rows that are not here are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

import llmquant as lq
from llmquant.cli import app
from llmquant.planning.hub_rows import refuse_missing_rows
from llmquant.planning.resolve import parts_of
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
        ("evaluator", "mteb(VidoreDocVQARetrieval)", "retrieval(PAGES, queries=FILE.jsonl)"),
        ("evaluator", "mteb(NFCorpus)", "beir(FOLDER)"),
        ("evaluator", "drift(NFCorpus)", "drift(PAGES, queries=FILE.jsonl) or drift(FOLDER)"),
        ("quantizer", "gptq_4bit_g128", "calibration=FILE.txt"),
        ("quantizer", "awq(calibration=wikitext2)", "calibration=FILE.txt"),
        ("quantizer", "auto_round", "calibration=FILE.txt"),
    ],
)
def test_every_data_set_of_the_hub_is_refused_with_its_own_hint(tmp_path: Path, kind: str, call: str, instead: str):
    """Tasks, texts and calibration sets each have an option that reads a file."""
    assert f"use a local file: {instead}" in refused(tmp_path, kind, call)


@pytest.mark.parametrize(
    ("call", "rows"),
    [("lm_eval(squadv2)", "lighteval/squad_v2"), ("mteb(STSBenchmark)", "mteb/stsbenchmark-sts")],
)
def test_rows_that_no_file_replaces_are_refused_too(tmp_path: Path, call: str, rows: str):
    """A task of Python code and a task that does not search have no local form."""
    said = refused(tmp_path, "evaluator", call)
    assert f"the rows of {rows} are not in the local cache" in said
    assert said.endswith("Go online once.")


def test_a_benchmark_is_refused_in_one_message(tmp_path: Path):
    """Its tasks have the same remedy, which is named once, with the first of their data sets."""
    tasks = registry().choose("evaluator", Call.parse("mteb(ViDoRe(v1))"))
    with pytest.raises(lq.errors.OptionError, match=r"mteb\(.+\), mteb\(.+\), mteb\(.+\) and 7 more: the rows of"):
        refuse_missing_rows(parts_of(registry(), tasks, []), Cache(tmp_path / "cache"))


def test_a_text_is_in_the_cache_with_its_split_and_column(tmp_path: Path):
    """A column that the cached data set does not have would fail only in the worker."""
    made = tmp_path / "home" / "datasets" / "org___texts" / "en" / "0.0.0" / "0a1b"
    made.mkdir(parents=True)
    (made / "dataset_info.json").write_text('{"splits": {"test": {}}, "features": {"text": {}}}')
    assert not refused(tmp_path, "evaluator", "perplexity(org/texts:en:test:text)")
    assert refused(tmp_path, "evaluator", "perplexity(org/texts:en:train:text)")
    assert refused(tmp_path, "evaluator", "perplexity(org/texts:en:test:body)")


def test_calibration_texts_need_the_hub_even_if_their_rows_are_cached(tmp_path: Path):
    """They are streamed, which reads no cache."""
    made = tmp_path / "home" / "datasets" / "allenai___c4" / "en" / "0.0.0" / "0a1b"
    made.mkdir(parents=True)
    (made / "dataset_info.json").write_text("{}")
    assert refused(tmp_path, "quantizer", "gptq_4bit_g128")


@pytest.mark.parametrize("folder", ["EleutherAI___coqa/default", "org___my_texts/en"])
def test_rows_in_the_local_cache_are_not_refused(tmp_path: Path, folder: str):
    """The folders are those in which `datasets` keeps prepared rows."""
    call = "lm_eval(coqa)" if "coqa" in folder else "perplexity(org/MyTexts:en:test:text)"
    assert refused(tmp_path, "evaluator", call)
    made = tmp_path / "home" / "datasets" / folder / "0.0.0" / "0a1b"
    made.mkdir(parents=True)
    (made / "dataset_info.json").write_text('{"splits": {"test": {}}, "features": {"text": {}}}')
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
    monkeypatch.setattr("llmquant.planning.hub_rows.unreachable", lambda: "")
    assert not refused(tmp_path, "evaluator", "perplexity")
