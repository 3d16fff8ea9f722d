"""Documents of one source count as one: which they are, and what it does to intervals."""

from __future__ import annotations

import contextlib
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from llmquant.catalogs.lm_eval_groups import groups_of
from llmquant.errors import OptionError, RunError
from llmquant.evaluators.lm_eval.answers import has_right_answer
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build
from llmquant.stats.samples import pair_samples
from llmquant.study.call import Call
from llmquant.study.run import Measurement, Sample
from made_up import NO_FILES

STORIES = [f"Story {n}. {'Once upon a time there was a mill. ' * 4}" for n in range(3)]


def shapes(rows):
    """Return the groups as numbers, in the order in which they come."""
    field, groups = groups_of(rows, None)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return field, [numbers[group] for group in groups]


@pytest.mark.parametrize("field", ["story", "passage", "context", "article", "flores_passage", "Paragraph", "anything"])
def test_documents_with_an_equal_source_are_a_group(field):
    """By the names of common data sets, and any long text under another name."""
    rows = [{"id": str(n), field: STORIES[n % 3], "question": f"What is {n}?"} for n in range(9)]
    assert shapes(rows) == (field, [0, 1, 2] * 3)


@pytest.mark.parametrize("field", ["story_id", "document_id", "passageId", "dialogue_id"])
@pytest.mark.parametrize("kind", [int, str])
def test_the_id_of_a_source_is_enough(field, kind):
    """However short it is; the id of a row, which no other has, groups nothing."""
    rows = [{"id": str(n), field: kind(n // 3), "question": f"What is {n}?"} for n in range(9)]
    assert shapes(rows) == (field, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert groups_of([{field: kind(n), "question": f"What is {n}?"} for n in range(9)], None) == ("", [""] * 9)


def test_a_source_may_be_inside_an_object_or_a_list():
    """As in SQuAD's own layout and in HotpotQA's."""
    assert shapes([{"paragraph": {"context": STORIES[n % 2]}} for n in range(4)]) == ("paragraph.context", [0, 1, 0, 1])
    rows = [{"context": {"title": ["a"], "sentences": [[STORIES[n // 2]]]}} for n in range(4)]
    assert shapes(rows) == ("context", [0, 0, 1, 1])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": STORIES[0]},
        {"system_prompt": STORIES[0]},
        {"text": STORIES[0]},
        {"answer": "No."},
        {"context": ""},
        {"context": "None given."},
        {"category": "history"},
        {"choices": ["yes", "no"]},
    ],
)
def test_what_all_documents_have_is_no_source(row):
    """Instructions, classes, choices and contexts that are empty."""
    assert groups_of([{"question": f"{n}?", **row} for n in range(4)], None) == ("", [""] * 4)


def test_long_answers_and_instructions_are_no_sources():
    """Even where several documents share one and others another."""
    rows = [{"question": f"{n}?", "instruction": STORIES[n % 2], "answers": STORIES[n % 3]} for n in range(6)]
    assert groups_of(rows, None) == ("", [""] * 6)


def test_one_story_for_all_is_one_group():
    """All questions about one text are one document."""
    assert shapes([{"story": STORIES[0], "question": str(n)} for n in range(4)]) == ("story", [0] * 4)


def test_documents_without_a_source_stand_alone():
    """Beside others that share one."""
    rows = [{"context": STORIES[0]}, {"context": ""}, {"context": STORIES[0]}, {"context": None}, {}]
    _, groups = groups_of(rows, None)
    assert groups[0] == groups[2] != ""
    assert groups[1] == groups[3] == groups[4] == ""


def test_a_field_that_is_named_is_taken():
    """Short ones too, and numbers, at any depth."""
    rows = [{"story": STORIES[0], "at": {"place": n % 2}} for n in range(4)]
    field, groups = groups_of(rows, "at.place")
    assert field == "at.place"
    assert groups[0] == groups[2] != groups[1] == groups[3]


@pytest.mark.parametrize("field", ["place", "at.time", "story.place"])
def test_a_field_that_is_missing_is_refused(field):
    """With the document and what it has."""
    rows = [{"place": 1, "at": {"time": 1}, "story": {"place": 1}}, {"at": {}, "story": "x"}]
    with pytest.raises(RunError, match=rf"document 2 has no field '{field}' to group by; it has 'at', 'story'"):
        groups_of(rows, field)


@pytest.mark.parametrize(("task", "refused"), [("boolq", True), ("hellaswag", False)])
def test_rows_without_the_field_are_refused_at_plan_time(tmp_path, monkeypatch, task, refused):
    """Unless code of the task makes documents of them, which may have it."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    row = {"passage": "p", "question": "q", "label": 0, "ctx_a": "", "ctx_b": "", "activity_label": "", "endings": []}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"source": "a"}) + "\n" + json.dumps(row) + "\n")
    chosen = build(LmEvalOptions, Call("lm_eval", (task,), {"data": str(tmp_path / "rows.jsonl"), "group": "source"}))
    with pytest.raises(OptionError, match="line 2 has no 'source'") if refused else contextlib.nullcontext():
        chosen.check(NO_FILES, "cpu")


def sampled(scores, groups, metric="acc"):
    return [
        Sample(str(n), "p", {metric: score}, group=group)
        for n, (score, group) in enumerate(zip(scores, groups, strict=True))
    ]


def paired(variant, baseline, metric="acc", value=np.mean):
    measured = [
        Measurement("t", metric, float(value([s.scores[k] for s in run for k in s.scores])))
        for run in (variant, baseline)
    ]
    return pair_samples(*measured, {"t": variant}, {"t": baseline})


def test_intervals_hold_what_they_promise_where_stories_are_shared():
    """Over 200 simulated studies of 15 stories with 10 questions each, whose true difference is zero."""
    draw = random.Random(0)
    rows = [{"story": STORIES[0] + str(n // 10), "question": str(n)} for n in range(150)]
    groups = groups_of(rows, None)[1]
    held = {True: 0, False: 0}
    for _ in range(200):
        shifts = [draw.gauss(0, 0.2) for _ in range(15)]
        before = [draw.gauss(0, 1) for _ in rows]
        after = [b + shifts[n // 10] + draw.gauss(0, 0.1) for n, b in enumerate(before)]
        for grouped in held:
            given = groups if grouped else [""] * 150
            difference = paired(sampled(after, given), sampled(before, given)).difference()
            held[grouped] += difference.low <= 0 <= difference.high
    assert held[True] >= 180
    assert held[False] <= 140


def test_perplexity_over_documents_pairs():
    """The logarithm of lm-eval's perplexity is a mean over documents, each counting one."""
    before = sampled([1.0, 2.0, 4.0] * 4, [""] * 12, "nll")
    after = sampled([1.5, 2.25, 4.5] * 4, [""] * 12, "nll")

    def value(nats):
        return np.exp(np.mean(nats))

    pairs = paired(after, before, "perplexity", value)
    assert pairs.scale == "log"
    assert pairs.difference().value == pytest.approx((0.5 + 0.25 + 0.5) / 3)
    assert pairs.difference().low < pairs.difference().value < pairs.difference().high


class Choosing:
    """What `has_right_answer` asks of a task."""

    OUTPUT_TYPE, multiple_input = "multiple_choice", 0
    config = SimpleNamespace(process_results=None, doc_to_choice="choices")

    def __init__(self, gold):
        self.gold = gold

    def doc_to_choice(self, doc):
        return ["a", "b", "b"]

    def doc_to_target(self, doc):
        return self.gold


@pytest.mark.parametrize(
    ("gold", "right"),
    [
        (0, True),
        (1, True),
        ("b", True),
        (True, True),
        ([5, 1], True),
        (2, False),
        (3, False),
        (-1, False),
        ("B", False),
        ([], False),
    ],
)
def test_a_document_without_a_right_answer_is_known(gold, right):
    """As lm-eval scores it."""
    assert has_right_answer(Choosing(gold), {}) is right
