"""Local rows reach lm-eval as they were written, and a row that no model could get right is refused."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import JSON_VALUES
from llmquant.errors import OptionError, RunError
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build
from llmquant.study.call import Call
from made_up import NO_FILES

pytestmark = pytest.mark.usefixtures("task_index")

GENERATE = """
task: mine
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 2}
metric_list: [{metric: exact_match}]
"""
CHOOSE = """
task: mine
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: %s
doc_to_choice: %s
metric_list: [{metric: acc}]
"""


@pytest.fixture
def options(tmp_path):
    """Write a task and its rows, and name both; a task without white space is one of lm-eval's own."""

    def write(task, rows, **others):
        file = tmp_path / "rows.jsonl"
        data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        file.write_bytes(data)
        if "\n" in task:
            (tmp_path / "mine.yaml").write_text(task)
            task = str(tmp_path / "mine.yaml")
        return build(LmEvalOptions, Call("lm_eval", (task,), {"data": str(file), **others}))

    return write


def load(options, context):
    """Build the task as the worker does."""
    from llmquant.evaluators.lm_eval.evaluator import _load_tasks

    ctx = context()
    folder = ctx.files / "scratch"
    folder.mkdir(parents=True)
    (task,) = _load_tasks(options, ctx, folder)["tasks"].values()
    return task


@given(st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=3), min_size=1, max_size=4))
def test_documents_are_the_rows(tmp_path_factory, rows):
    """Every value of its own type, fields that some rows lack, and nothing beside them."""
    from llmquant.evaluators.lm_eval.documents import read_documents

    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = read_documents(local_rows=str(path), local_rows_name="any.jsonl", version=1)["test"]
    assert repr(list(documents)) == repr(rows)


@pytest.mark.parametrize(
    "answer", ["2019-05-01", "2019-05-01T10:00:00", "5", 5, 5.5, "5.0", 10**25, "1e3", " x ", "\u2028", "NaN", "null"]
)
def test_an_answer_is_what_was_written(options, context, answer):
    """In every neighbourhood: beside it are a number with a point and a text."""
    rows = [{"question": "q", "answer": answer}, {"question": "q", "answer": 5.5}, {"question": "q", "answer": "t"}]
    chosen = options(GENERATE, rows)
    chosen.check(NO_FILES, "cpu")
    task = load(chosen, context)
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [str(answer), "5.5", "t"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_crlf_change_nothing(options, context, mark):
    """A file of Windows gives the documents of any other."""
    chosen = options(GENERATE, mark + b'{"question": "q", "answer": "a"}\r\n{"question": "r", "answer": "b"}\r\n')
    chosen.check(NO_FILES, "cpu")
    docs = list(load(chosen, context).eval_docs)
    assert docs == [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]


YES = [{"question": "q", "label": 1}, {"question": "r", "label": 0}]


@pytest.mark.parametrize("target", ["label", '"{{label}}"'])
@pytest.mark.parametrize("label", [2, -1, "Yes", " yes", True, False, 1.0, 0.0, None, "", [1], {"a": 1}, "1.0", 10**20])
def test_a_label_that_is_no_choice_is_refused_with_its_line(options, label, target):
    """Before anything starts: lm-eval would score it 0, whatever a model says."""
    chosen = options(CHOOSE % (target, '["no", "yes"]'), [*YES, {"question": "s", "label": label}])
    with pytest.raises(OptionError, match=r"lm_eval: data: rows.jsonl, line 3: "):
        chosen.check(NO_FILES, "cpu")


@pytest.mark.parametrize(
    ("target", "choices", "labels"),
    [
        ("label", '["no", "yes"]', [0, 1]),
        ("label", '["no", "yes"]', ["yes", "no"]),
        ('"{{label}}"', "\"{{['no', 'yes']}}\"", [1, "yes", "0"]),
        ('"{{label|int}}"', "options", [True, 0, "1"]),
        ("label", "{a: 'no', b: 'yes'}", [0, "yes"]),
        ("label", "options", [[0], [0, 1]]),
    ],
)
def test_labels_that_are_choices_are_accepted(options, context, target, choices, labels):
    """By number or by text, however the task lists its choices, at plan time and by the worker alike."""
    from llmquant.evaluators.lm_eval.evaluator import _check_documents

    rows = [{"question": f"q{n}", "label": label, "options": ["no", "yes"]} for n, label in enumerate(labels)]
    chosen = options(CHOOSE % (target, choices), rows)
    chosen.check(NO_FILES, "cpu")
    _check_documents(load(chosen, context), chosen)


@pytest.mark.parametrize("choices", [["a", ""], ["a", 5], "ab", None, []])
def test_choices_that_are_no_texts_are_refused(options, choices):
    """lm-eval fails on some after a model was scored, and divides by the length of others."""
    rows = [{"question": "q", "label": 0, "options": ["a", "b"]}, {"question": "q", "label": 0, "options": choices}]
    with pytest.raises(OptionError, match="line 2: "):
        options(CHOOSE % ("label", "options"), rows).check(NO_FILES, "cpu")


@pytest.mark.parametrize("target", ["answer", '"{{answer}}"', '"The answer is {{answer}}."'])
@pytest.mark.parametrize("answer", [None, True, False])
def test_an_answer_that_would_be_printed_as_a_word_of_python_is_refused(options, target, answer):
    """`null` and `true` would be expected as the texts None and True."""
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": answer}]
    with pytest.raises(OptionError, match=r"line 2: the right answer is (null|true|false), which is not a text"):
        options(GENERATE.replace('"{{answer}}"', target), rows).check(NO_FILES, "cpu")


LOGLIKELIHOOD = """
task: mine
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("target", ["answer", '"{{answer}}"'])
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"text": "a"}, "b", 'line 1: the right answer is {"text": "a"}, which is not a text'),
        (["a", "b"], "cat", 'line 2: the right answer is "cat", which is not a list, unlike that of the first row'),
        ("cat", ["a", "b"], 'line 2: the right answer is ["a", "b"], which is a list, unlike'),
        ([5, 6], ["a"], "line 1: the right answer is [5, 6], which is not a text"),
    ],
)
def test_answers_that_lm_eval_would_change_are_refused(options, target, first, second, words):
    """It compares a text beside lists letter by letter, and numbers in a list with texts."""
    rows = [{"question": "q", "answer": first}, {"question": "r", "answer": second}]
    with pytest.raises(OptionError, match=re.escape(words)):
        options(GENERATE.replace('"{{answer}}"', target), rows).check(NO_FILES, "cpu")


def test_a_text_in_brackets_is_no_list_of_answers(options, context):
    """Where the task names the field it stays a text; where lm-eval would make a list of it, it is refused."""
    rows = [{"question": "q", "answer": "[1,2]"}]
    with pytest.raises(OptionError, match=re.escape('line 1: the right answer is the text "[1,2]", which lm-eval')):
        options(GENERATE, rows).check(NO_FILES, "cpu")
    chosen = options(GENERATE.replace('"{{answer}}"', "answer"), rows)
    chosen.check(NO_FILES, "cpu")
    task = load(chosen, context)
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == ["[1,2]"]


def test_a_choice_that_is_the_number_of_another_is_refused(options):
    """To a template's 2 lm-eval takes the third of the choices 1, 2, 3; the number 2 means it."""
    rows = [{"question": "q", "label": "2", "options": ["1", "2", "3"]}]
    with pytest.raises(OptionError, match=r'line 1: the right answer is "2", which is a choice and the number'):
        options(CHOOSE % ('"{{label}}"', "options"), rows).check(NO_FILES, "cpu")
    options(CHOOSE % ("label", "options"), rows).check(NO_FILES, "cpu")
    options(CHOOSE % ('"{{label}}"', "options"), [rows[0] | {"label": 2}]).check(NO_FILES, "cpu")


@pytest.mark.parametrize(
    ("label", "accepted"), [(0, True), (1, False), (2, True), ("salt", True), ([1, 2], True), ([1], False)]
)
def test_a_right_choice_that_stands_twice_is_refused(options, label, accepted):
    """Of equal choices lm-eval takes the first, so the number of the second is wrong for every model."""
    chosen = options(
        CHOOSE % ("label", "options"), [{"question": "q", "label": label, "options": ["salt", "salt", "x"]}]
    )
    said = r"line 1: the right answer is .*, whose text is that of an earlier choice"
    with contextlib.nullcontext() if accepted else pytest.raises(OptionError, match=said):
        chosen.check(NO_FILES, "cpu")


@pytest.mark.parametrize(
    ("answer", "more", "accepted"),
    [
        ("Paris\n", "", False),
        ("two\nlines", "filter_list: [{name: f, filter: [{function: remove_whitespace}]}]", False),
        (["Paris\n", "Paris"], "", True),
        ("Paris", "", True),
        ("two\nlines", "filter_list: [{name: f, filter: [{function: map, mapping_dict: {a: b}}]}]", True),
    ],
)
def test_an_answer_that_no_model_can_write_is_refused(options, answer, more, accepted):
    """What a model writes ends before the first stop text, so it never equals an answer that contains one."""
    target = "answer" if isinstance(answer, list) else '"{{answer}}"'
    task = GENERATE.replace('"{{answer}}"', target) + more
    said = r"line 1: the right answer is .*, which no answer can equal, because it ends at one of"
    with contextlib.nullcontext() if accepted else pytest.raises(OptionError, match=said):
        options(task, [{"question": "q", "answer": answer}]).check(NO_FILES, "cpu")
    options(task, [{"question": "q", "answer": answer}], gen_kwargs={"until": ["###"]}).check(NO_FILES, "cpu")


@pytest.mark.parametrize("answer", ["", 7, ["a"]])
def test_an_answer_to_score_is_a_text(options, answer):
    """Its likelihood is taken as it is written, and lm-eval fails on anything else after a model was loaded."""
    with pytest.raises(OptionError, match=r"line 1: the right answer is .*, which is not a text"):
        options(LOGLIKELIHOOD, [{"question": "q", "answer": answer}]).check(NO_FILES, "cpu")


@pytest.mark.parametrize("question", ['"{{question}}"', "question"])
def test_a_question_of_null_is_refused(options, question):
    """A template would ask for None."""
    rows = [{"question": "q", "answer": "a"}, {"question": None, "answer": "a"}]
    with pytest.raises(OptionError, match=r"line 2: the question (holds|is) null, which is not a text"):
        options(GENERATE.replace('"{{question}}"', question), rows).check(NO_FILES, "cpu")


ARC = {"question": "q", "choices": {"text": ["salt", "moon"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        ("arc_easy", [ARC, ARC | {"answerKey": "C"}], "line 2: its right answer cannot be read: ValueError"),
        ("boolq", [{"passage": "p", "question": "q", "label": "Yes"}], 'line 1: the right answer is "Yes"'),
        ("sciq", [], "holds no rows"),
    ],
)
def test_tasks_of_lm_eval_are_checked_alike(options, task, rows, words):
    """Where their YAML says it all, at plan time."""
    with pytest.raises(OptionError, match=words):
        options(task, rows or b"\n \n").check(NO_FILES, "cpu")


HELLASWAG = {"ctx_a": "One", "ctx_b": "two", "activity_label": "x", "endings": ["a", "b"], "label": "1"}


def test_what_only_code_can_tell_is_refused_before_a_model_is_scored(options, context):
    """A task with functions of its own is checked by the worker, with the line of the file."""
    from llmquant.evaluators.lm_eval.evaluator import _check_documents

    chosen = options("hellaswag", [HELLASWAG, HELLASWAG | {"label": "2"}])
    chosen.check(NO_FILES, "cpu")
    with pytest.raises(RunError, match=r"rows.jsonl, line 2: the right answer is 2, which is none of the choices"):
        _check_documents(load(chosen, context), chosen)


def test_code_that_fails_on_a_row_names_its_line(options, context):
    """Not only the error of Python."""
    rows = [HELLASWAG, HELLASWAG | {"label": "x"}]
    with pytest.raises(RunError, match=r"cannot be built with rows.jsonl: RunError: line 2: ValueError"):
        load(options("hellaswag", rows), context)


def test_a_field_that_only_code_reads_is_missed_before_a_model_is_scored(options, context):
    """The worker says in which line, and which field."""
    chosen = options("hellaswag", [HELLASWAG, {key: value for key, value in HELLASWAG.items() if key != "ctx_b"}])
    chosen.check(NO_FILES, "cpu")
    with pytest.raises(RunError, match=r"cannot be built with rows.jsonl: RunError: line 2: KeyError: 'ctx_b'"):
        load(chosen, context)


def test_a_task_that_shuffles_scores_what_it_asked(options, context):
    """lm-eval asks for the documents again when it scores; the choices must stand where they stood."""
    row = {"Question": "q", "Correct Answer": "right", "Record ID": 1, "High-level domain": "x"}
    row |= {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    task = load(options("gpqa_main_n_shot", [row | {"Question": f"q{n}"} for n in range(8)]), context)
    assert list(task.eval_docs) == list(task.eval_docs)
    assert len({doc["answer"] for doc in task.eval_docs}) > 1


def test_documents_are_copies(options, context):
    """A task that sorts what it is given changes nothing for whoever comes next."""
    task = load(options("webqs", [{"question": "q", "answers": ["b", "a"]}]), context)
    task.doc_to_choice(task.eval_docs[0])
    assert task.eval_docs[0]["answers"] == ["b", "a"]


def test_rows_are_what_a_data_set_would_be(tmp_path):
    """Map, filter and select give the rows that `datasets` gives, where its types can hold them."""
    import datasets

    from llmquant.evaluators.lm_eval.documents import LocalRows

    rows = [{"a": n, "b": str(n)} for n in range(5)]
    for source in (datasets.Dataset.from_list(rows), LocalRows(rows, [""] * 5)):
        double = source.map(lambda row, n: {"a": 2 * row["a"] + n, "c": True}, with_indices=True, remove_columns=["b"])
        assert list(double) == [{"a": 3 * n, "c": True} for n in range(5)]
        assert list(source.filter(lambda row: row["a"] % 2)) == [rows[1], rows[3]]
        assert list(source.select([4, 0])) == [rows[4], rows[0]]
        assert list(source.map(lambda rows: {"a": rows["a"] * 2, "b": rows["b"] * 2}, batched=True)) == rows * 2
        assert (list(source["b"]), list(source.features), source.column_names) == (
            list("01234"),
            ["a", "b"],
            ["a", "b"],
        )


def test_equal_code_over_other_values_is_other_code():
    """Functions that differ only in their captured values are distinguished."""
    from llmquant.evaluators.lm_eval.documents import LocalRows

    rows = LocalRows([{"a": n} for n in range(4)], [""] * 4)

    def equal_to(n):
        return lambda row: row["a"] == n

    expected = [[{"a": n}] for n in range(4)]
    assert [list(rows.filter(equal_to(n))) for n in range(4)] == expected
    assert [list(rows.filter(lambda row, n=n: row["a"] == n)) for n in range(4)] == expected
