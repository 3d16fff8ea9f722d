"""A wrong plain value in Python or on the command line is refused by its name, before anything is read or loaded."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

import llmquant as lq
from llmquant.cli.app import main
from llmquant.errors import ModelError, OptionError, RequestError, RequestErrors, StoreError, UnknownNameError
from llmquant.study.margins import read_margins
from made_up import realistic_study, small_study, store_of


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lq.load("./m", seed="a"), "seed must be a whole number, found 'a'"),
        (lambda: lq.load("./m", seed=1.5), "seed must be a whole number, found 1.5"),
        (lambda: lq.load("./m", seed=-1), "seed must be a whole number from 0 to 4294967295, found -1"),
        (lambda: lq.load("./m", seed=np.int64(-1)), "seed must be a whole number from 0 to 4294967295, found -1"),
        (lambda: lq.load("./m", device=3), "device must be a text, found 3"),
        (lambda: lq.load(None), "model is None, which is not a model"),
        (lambda: lq.load_embedder("./m", seed=True), "seed must be a whole number, found True"),
        (lambda: lq.quantize("./m", "rtn", 3), "out is 3, not a path"),
        (lambda: lq.quantize("./m", "rtn", ""), "the name to write to is empty"),
        (lambda: lq.quantize("./m", "rtn", "out", progress=3), "progress is 3, not a function"),
        (lambda: lq.compare("./m", limit="ten"), "limit must be a whole number, found 'ten'"),
        (lambda: lq.compare("./m", fresh="no"), "fresh must be true or false, found 'no'"),
        (lambda: lq.compare("./m", progress="no"), "progress must be true or false, found 'no'"),
        (lambda: lq.compare("./m", timeout_s=True), "timeout_s must be a finite number, found True"),
        (lambda: lq.attach(3, executor="local"), "study must be a text, found 3"),
        (lambda: lq.import_results("nowhere", baseline=3), "baseline must be a text, found 3"),
        (lambda: lq.import_results("nowhere"), "nowhere does not exist"),
        (lambda: lq.Comparison.load(3), "path is 3, not a path"),
        (lambda: lq.Comparison.from_store("nowhere", 3), "study must be a text, found 3"),
        (lambda: lq.Limits.of("8GiB", "fast"), "max_latency must be a finite number, found 'fast'"),
        (lambda: lq.Item.from_file(3), "path is 3, not a path"),
        (lambda: lq.run_study("study.toml"), "study is 'study.toml'"),
        (lambda: lq.compare(None), "models must be a list, found None"),
        (lambda: read_margins(-1), "the margin for shares must be 0 to 100 points, found -1"),
    ],
)
def test_a_wrong_value_is_named(call, message):
    """The message has the argument, what it must be, and what was found."""
    with pytest.raises(RequestError) as raised:
        call()
    assert raised.value.message == message


def test_all_wrong_values_are_named_at_once():
    """Two mistakes are two lines."""
    with pytest.raises(RequestErrors, match=r"(?s)device must be a text.*seed must be a whole number"):
        lq.load("./m", device=3, seed="a")


def test_checked_functions_keep_their_signature():
    """Help and editors show the arguments as they are written."""
    assert list(inspect.signature(lq.load).parameters) == ["model", "quantizer", "device", "seed"]
    assert list(inspect.signature(lq.Comparison.from_store).parameters) == ["store", "study"]


def test_a_relative_path_is_a_folder(monkeypatch, tmp_path):
    """`Path("tiny")` is ./tiny, also where the Hub may have a model of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"\./tiny"):
        lq.load(Path("tiny"))
    assert lq.Study.of(Path("tiny")).models == lq.Study.of("./tiny").models
    assert lq.Study.of(tmp_path).models == lq.Study.of(str(tmp_path)).models


def test_names_of_a_comparison_are_checked(tmp_path):
    """A variant or task that the study does not have is refused with those it has."""
    found = lq.Comparison.from_store(store_of(realistic_study(), tmp_path))
    with pytest.raises(UnknownNameError, match="there is no variant 'typo'"):
        found.samples_frame("typo")
    with pytest.raises(UnknownNameError, match="there is no task 'typo'"):
        found.samples_frame(task="typo")
    with pytest.raises(OptionError, match="limit is 0"):
        found.flipped(limit=0)


def test_an_ambiguous_study_is_not_called_missing(tmp_path):
    """The beginning of several ids names those that begin with it."""
    store = store_of(small_study(), tmp_path)
    (name,) = store.studies()
    store.write_study("other", store.read_study(name, dict))
    with pytest.raises(StoreError, match=f"(?s)several studies begin with ''.*{name}, other"):
        lq.Comparison.from_store(store, "")


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        (("-o", "a.html"), "<!doctype html>"),
        (("-o", "a.csv"), "model,"),
        (("-o", "a.html", "-f", "csv"), "model,"),
        (("-o", "a"), "meta-llama/"),
    ],
)
def test_the_ending_of_a_report_chooses_its_form(monkeypatch, tmp_path, options, begins):
    """`report -o a.html` writes HTML; --format goes first."""
    monkeypatch.chdir(tmp_path)
    store_of(small_study(), tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["llmquant", "report", *options])
    with pytest.raises(SystemExit):
        main()
    assert Path(options[1]).read_text(encoding="utf-8").startswith(begins)


@pytest.mark.parametrize("option", ["-o", "--html", "--junit"])
@pytest.mark.parametrize(("name", "problem"), [("no/a.html", "the folder of no/a.html does not"), (".", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_first(monkeypatch, capsys, tmp_path, option, name, problem):
    """Before a store is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llmquant", "report", option, name])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert problem in capsys.readouterr().err


def test_a_negative_age_deletes_nothing(monkeypatch, capsys, tmp_path):
    """`cache prune --unused-days -1` is a slip, not a wish to delete all."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path))
    (tmp_path / "kind" / ("a" * 32)).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["llmquant", "cache", "prune", "--unused-days", "-1"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "unused days must be at least 0, found -1" in capsys.readouterr().err
    assert (tmp_path / "kind" / ("a" * 32)).is_dir()


def test_many_mistakes_of_one_kind_are_one_line():
    """The tasks of a benchmark that a model cannot do are counted; a few mistakes are each written."""
    errors = [OptionError(f"task {name!r} holds images", hint="Use another.") for name in "abcdefgh"]
    other = OptionError("limit is 0")
    assert str(RequestErrors([*errors, other])) == (
        "- task 'a' holds images; the same for 'b', 'c', 'd' and 4 more\n  Use another.\n- limit is 0"
    )
    assert RequestErrors([*errors, other]).errors == (*errors, other)
    assert str(RequestErrors(errors[:2])).count("Use another.") == 2
