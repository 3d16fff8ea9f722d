"""The engine on tasks of lm-eval: the first rows of each get the same scores through both paths."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from llmquant.evaluators.lm_eval.evaluator import LmEval
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from subjects import load_subject

FACTS = [
    ("Mina kept a blue kite in the shed.", "What color was the kite?", "blue", 3),
    ("The ferry left at nine with forty goats.", "When did the ferry leave?", "at nine", 40),
    ("Ada baked two loaves and gave one away.", "How many loaves?", "two", 2),
    ("A bell hung over the mill.", "Where did the bell hang?", "over the mill", 1),
]
CHOICES = ["salt", "the moon", "a wooden box"]


def rows(make):
    """Make a row of each fact; the right choice is at another place each time."""
    made = []
    for number, (story, question, answer, count) in enumerate(FACTS):
        choices = [*CHOICES[: number % 4], answer, *CHOICES[number % 4 :]]
        made.append(make(story, question, choices, number % 4, count))
    return made


def coqa(story, question, choices, right, count):
    asked, answers = ["What is this?", question], ["a story", choices[right]]
    more = {str(k): {"input_text": answers} for k in range(3)}
    return {
        "story": story,
        "questions": {"input_text": asked},
        "answers": {"input_text": answers},
        "additional_answers": more,
    }


# By the task, with the fields of its data set on the Hub.
TASKS = {
    "hellaswag": lambda story, question, choices, right, count: {
        **{"ctx_a": story, "ctx_b": "it", "activity_label": "Things", "endings": choices, "label": str(right)}
    },
    "arc_challenge, num_fewshot=2": lambda story, question, choices, right, count: {
        **{"question": question, "choices": {"text": choices, "label": [*"ABCD"]}, "answerKey": "ABCD"[right]}
    },
    "mmlu_astronomy, num_fewshot=2": lambda story, question, choices, right, count: {
        **{"question": question, "choices": choices, "answer": right, "subject": "astronomy"}
    },
    "lambada_openai": lambda story, question, choices, right, count: {"text": story.removesuffix(".")},
    "wikitext": lambda story, question, choices, right, count: {"page": f"{story} {question}"},
    'coqa, gen_kwargs={"max_gen_toks": 24}': coqa,
    'gsm8k, num_fewshot=2, gen_kwargs={"max_gen_toks": 24}': lambda story, question, choices, right, count: {
        **{"question": f"{story} How many are there?", "answer": f"There are {count}.\n#### {count}"}
    },
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a cache for all tasks, because listing them takes seconds."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("task", TASKS)
def test_first_rows_get_the_same_scores_through_both_paths(tiny_model, context, cache, tmp_path, monkeypatch, task):
    """Every score of every document, and the same prompts; the engine read less than lm-eval."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(cache.root))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(TASKS[task])))
    subject = load_subject(tiny_model, cache)
    found = {}
    for engine in ("tree", "stock"):
        call = Call.parse(f"lm_eval({task}, data={data}, engine={engine})")
        (found[engine],) = LmEval(build(LmEvalOptions, call)).evaluate(subject, replace(context(), cache=cache))
        assert found[engine].details["engine"] == engine
    assert len(found["tree"].samples) == len(FACTS)
    for one, other in zip(found["tree"].samples, found["stock"].samples, strict=True):
        assert (one.document, one.prompt) == (other.document, other.prompt)
        assert one.scores == pytest.approx(other.scores, rel=1e-4)
    assert found["tree"].details["tokens_read"] <= found["tree"].details["tokens_read_by_stock"]


def test_the_plot_shows_the_committed_results():
    """The picture in the documentation is what the script draws from the results page."""
    root = Path(__file__).parent.parent
    drawn = runpy.run_path(str(root / "benchmarks" / "engine_plot.py"))
    results = (root / "benchmarks" / "results" / "engine.md").read_text(encoding="utf-8")
    assert (root / "docs" / "assets" / "engine.svg").read_text(encoding="utf-8") == drawn["picture"](results) + "\n"
