"""Whatever a plugin raises becomes one failed run with a message, and the tasks that it finished are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import llmquant as lq
from llmquant.errors import PluginError, RunError, describe
from misbehaving import NoException, Unreadable
from misbehaving_studies import Here, by_evaluator, compare, misbehaving

__all__ = ["misbehaving"]  # a fixture


def raised(make) -> BaseException:
    try:
        raise make()
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ValueError("too wide"), "ValueError: too wide"),
        (lambda: RunError("too wide", hint="Cut it."), "too wide\nCut it."),
        (lambda: NoException("odd"), "NoException: odd"),
        (lambda: SystemExit(3), "SystemExit: 3"),
    ],
)
def test_an_exception_is_worded_by_its_type_and_text(make, words):
    """An error of llmquant is a text for people already."""
    assert describe(raised(make)) == words


@pytest.mark.parametrize("make", [AssertionError, ValueError, SystemExit, KeyError, lambda: PluginError(" ")])
def test_an_exception_without_a_text_says_where_it_was_raised(make):
    """A type alone would say nothing."""
    words = describe(raised(make))
    assert " without a message, at " in words
    assert words.endswith(" in raised")
    assert Path(__file__).name in words


def test_an_exception_whose_text_cannot_be_made_is_worded():
    """The words say why there is no text, and where it was raised."""
    words = describe(raised(Unreadable))
    assert words.startswith("Unreadable whose message cannot be read (RuntimeError in its __str__), at ")


def test_an_exception_that_was_never_raised_is_worded():
    """There is no place to name."""
    assert describe(ValueError()) == "ValueError without a message"


@pytest.fixture
def study(tiny_model: Path, tmp_path: Path, without_functions: None):
    def run(*evaluators: str) -> lq.Comparison:
        return compare(tiny_model, tmp_path, *evaluators, executor=Here())

    return run


def test_whatever_is_raised_costs_one_experiment(study):
    """A text that cannot be made, sys.exit, what is no Exception, an endless chain of causes: all become a message."""
    words = {
        "unreadable": "Unreadable whose message cannot be read",
        "base": "NoException: it goes past except Exception",
        "exit": "SystemExit: 3",
        "assert": "AssertionError without a message, at ",
        "cycle": "ValueError without a message, at ",
    }
    runs = by_evaluator(study(*(f"break({what})" for what in words), "break"))
    for what, beginning in words.items():
        run = runs[f"break({what})"]
        assert (run.status, run.failure.kind) == ("failed", "error")
        assert run.failure.message.startswith(beginning)
    assert runs["break"].status == "completed"


def test_tasks_that_were_finished_are_kept(study, tmp_path):
    """An evaluator of several tasks that breaks off leaves the numbers and samples of those before, and its failure."""
    found = study("break(exit, after=2)", "break(wrong, after=9)")
    runs = by_evaluator(found)
    exited, wrong = runs["break(exit, after=2)"], runs["break(wrong, after=9)"]
    assert [m.task for m in exited.measurements] == ["task0", "task1"]
    assert "value is '0.5'" in wrong.failure.message
    stored = lq.Store(tmp_path / "store")
    assert {task: len(samples) for task, samples in stored.samples(exited).items()} == {"task0": 2, "task1": 2}
    rows = [row for row in found.rows() if row.evaluator == "break(exit, after=2)"]
    assert [(row.task, row.status) for row in rows] == [("task0", "completed"), ("task1", "completed"), ("", "failed")]
    assert [row.failure is None for row in rows] == [True, True, False]
    assert "SystemExit: 3" in found.to_text()


def test_a_run_that_broke_off_is_tried_again(study):
    """Kept tasks do not make it a completed one."""
    attempts = [by_evaluator(study("break(exit, after=2)"))["break(exit, after=2)"].attempt for _ in range(2)]
    assert attempts == [1, 2]


def test_finished_tasks_are_compared_where_both_finished_them():
    """Of two runs that broke off at different tasks, those pair that both finished."""
    from llmquant.results.rows import rows
    from llmquant.study.record import StudyRecord
    from made_up import BASELINE, MODEL, completed, experiment, failed, scored

    asked = [experiment(variant, "lm_eval(many)") for variant in (BASELINE, "nf4")]
    (first, first_samples), (second, second_samples) = (scored(task, "acc", [1, 0, 1, 1]) for task in ("a", "b"))
    samples = {"a": first_samples, "b": second_samples}
    broken = failed(asked[0], "error", "it broke off")
    runs = [completed(asked[1], first, second), replace(broken, measurements=(first,))]
    record = StudyRecord("s", "t", tuple(asked), {MODEL.digest: BASELINE})
    found = rows(record, {run.run_id: run for run in runs}, lambda run_id: samples)
    nf4 = {row.task: row for row in found if row.variant == "nf4"}
    assert nf4["a"].pairs == 4
    assert nf4["b"].pairs is None
    assert nf4["b"].no_interval == "the baseline failed"
