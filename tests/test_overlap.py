"""Calibration text that is evaluated on: found, and said before anything starts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.planning.overlap import shared_share
from llmquant.results.preview import preview
from llmquant.study.study import Study

WORDS = [f"word{i}" for i in range(400)]
TEXT = " ".join(WORDS)


@given(st.lists(st.text(max_size=80), max_size=5), st.lists(st.text(max_size=80), max_size=5))
def test_a_share_is_a_share(evaluation, calibration):
    """From 0 to 1; and a text is wholly in itself."""
    assert 0 <= shared_share(evaluation, calibration) <= 1
    if any(text.split() for text in evaluation):
        assert shared_share(evaluation, evaluation) == 1


def test_half_of_a_text_is_half_of_it():
    """Up to the sequences across the seam; case and white space do not matter."""
    half = "  ".join(WORDS[:200]).upper()
    assert shared_share([TEXT], [half]) == pytest.approx(0.5, abs=0.04)


def test_twelve_words_in_a_row_are_nothing():
    """Stock phrases are shared by all texts."""
    assert shared_share([TEXT], [" ".join([*WORDS[100:112], "and", "more", "of", "another", "kind"])]) == 0


@pytest.mark.parametrize("evaluator", ["perplexity({text}, window=64)", "lm_eval(coqa, data={rows})"])
def test_a_plan_says_what_is_calibrated_on_what_it_is_measured_on(evaluator, tiny_model, tmp_path, monkeypatch):
    """With how much of it; other text says nothing."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(" ".join(reversed(WORDS)))
    row = {"story": TEXT, "questions": {"input_text": ["Who?"]}, "answers": {"input_text": ["Nobody"]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"additional_answers": {}}) + "\n")
    call = evaluator.format(text=tmp_path / "text.txt", rows=tmp_path / "rows.jsonl")

    def notes(calibration):
        quantizer = f"gptq(group_size=32, samples=4, sequence_length=64, calibration={tmp_path / calibration})"
        study = Study.of(tiny_model, ["fp32_baseline", quantizer], [call])
        return "\n".join(preview(study, executor="local(device=cpu)", store=tmp_path / "store").record.notes)

    assert "is calibrated on" in notes("text.txt")
    assert "its measured loss is too small" in notes("text.txt")
    assert "calibrated" not in notes("other.txt")


def test_the_defaults_leave_out_what_cannot_run_here_and_say_so(tiny_model, tmp_path, monkeypatch):
    """On a CPU that is what calibrates; the note has the line to have it all the same."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    study = Study.of(tiny_model, [], [f"perplexity({tmp_path / 'text.txt'}, window=64)"])
    record = preview(study, executor="local(device=cpu)", store=tmp_path / "store").record
    assert {e.variant.quantizer.label for e in record.experiments} == {
        "bf16_baseline",
        "bnb_8bit",
        "bnb_4bit_nf4",
        "bnb_4bit_fp4",
    }
    said = [note for note in record.notes if "left out" in note]
    assert [note.split()[0] for note in said] == ["gptq_4bit_g128", "awq_4bit_g128"]
    assert "-q gptq_4bit_g128" in said[0]
