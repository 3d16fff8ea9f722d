"""Check that documents have a right answer: without one, lm-eval scores 0 for every model and only logs it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from llmquant.catalogs.lm_eval_yaml import Function
from llmquant.storage.text_files import Row

_READ = ("doc_to_text", "doc_to_target", "doc_to_choice")
HINT = (
    "Write questions and right answers as texts, or a right answer as the number of its choice from 0. "
    "Anything else scores 0, whatever a model says."
)
# Settings of a metric, and filters, with which no answer equals a text that contains more than the answer.
_EXACT = {"metric", "aggregation", "higher_is_better", "ignore_case"}
_SHORTENING = ("take_first", "remove_whitespace", "regex")
_FIELD = re.compile(r"\s*{{\s*(\w+(\.\w+)*)\s*}}\s*")  # a template that prints a field and nothing else


class _NoTextError(Exception):
    """A template would print a Python keyword such as None as the right answer."""


class _Task(Protocol):
    """The interface that lm-eval's tasks and `PlainTask` share."""

    OUTPUT_TYPE: str
    config: Any  # Any: lm-eval's configuration with `process_results`, `doc_to_target` and `doc_to_choice`

    @property
    def multiple_input(self) -> int: ...
    @property
    def multiple_target(self) -> int: ...
    def doc_to_text(self, doc: Row) -> Any: ...  # Any: these three are whatever a task says
    def doc_to_target(self, doc: Row) -> Any: ...
    def doc_to_choice(self, doc: Row) -> Any: ...


def has_right_answer(task: _Task, doc: Row) -> bool:
    """Return whether lm-eval can score a document; also true if the task scores with its own function."""
    own = task.config.doc_to_choice is None or callable(task.config.process_results)
    if task.OUTPUT_TYPE != "multiple_choice" or own:
        return True
    choices, gold = task.doc_to_choice(doc), _gold(task, doc)
    answers = gold if isinstance(gold, list) else [gold]
    known = [answer for answer in answers if answer in (choices if isinstance(answer, str) else range(len(choices)))]
    return any(not _is_repeated(choices, answer) for answer in known)


def mistake(task: _Task, doc: Row) -> str:
    """Describe the fault of a row's right answer; ``""`` for a valid answer.

    The check is stricter than `has_right_answer`: some tasks read ``true`` and ``1.0`` as choice number 1, others as a
    text that is none of the choices.
    """
    try:
        return _mistake(task, doc)
    except _NoTextError as error:
        return str(error)
    except Exception as error:  # a task's templates and functions may raise anything
        return f"its right answer cannot be read: {type(error).__name__}: {error}"


def _mistake(task: _Task, doc: Row) -> str:
    if callable(task.config.process_results):
        return ""
    gold = _gold(task, doc)
    answers = gold if isinstance(gold, list) else [gold]
    found = f"the right answer is {_json(gold)}"
    written, several = _written(task, doc), isinstance(gold, list)
    unlike = f"{found}, which is {'' if several else 'not '}a list, unlike that of the first row"
    if isinstance(task, PlainTask) and type(question := task.doc_to_text(doc)) not in (str, int, list):
        return f"the question is {_json(question)}, which is not a text"
    if task.config.doc_to_choice is None:
        if several and written is not None:
            return f"the right answer is the text {_json(written)}, which lm-eval reads as a list of answers"
        # lm-eval converts a number to text only if it is the single answer of a generating task.
        generates = task.OUTPUT_TYPE == "generate_until"
        kinds = (str, int, float) if generates and not several else (str,)
        unscored = not answers if generates else several or gold == ""
        if unscored or any(type(answer) not in kinds for answer in answers):
            return f"{found}, which is not a text"
        stops = task.stops if isinstance(task, PlainTask) and generates else ()
        if stops and all(any(stop in str(answer) for stop in stops) for answer in answers):
            return f"{found}, which no answer can equal, because it ends at one of {_json(stops)}"
        return unlike if several != bool(task.multiple_target) else ""
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        return f"the choices are {_json(choices)}, which is not a list of texts"
    if task.OUTPUT_TYPE == "multiple_choice" and several != bool(task.multiple_target):
        return unlike
    if isinstance(gold, int) and written in choices and choices.index(written) != gold:
        return f"the right answer is {_json(written)}, which is a choice and the number of another one"
    texts = choices if task.OUTPUT_TYPE == "multiple_choice" and not several else []
    if answers and all(answer in texts or _is_place(answer, len(choices)) for answer in answers):
        if task.OUTPUT_TYPE != "multiple_choice" or not all(_is_repeated(choices, answer) for answer in answers):
            return ""
        return f"{found}, whose text is that of an earlier choice too, which lm-eval would take"
    return f"{found}, which is none of the choices {_json(choices)}"


def _gold(task: _Task, doc: Row) -> Any:  # Any: usually a text or a number, or a list of them
    return task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)


def _written(task: _Task, doc: Row) -> str | None:
    """Return the text of a field that a template prints unchanged; lm-eval may parse it as a list or a number."""
    value: Any = doc  # Any: JSON
    match = _FIELD.fullmatch(str(task.config.doc_to_target))
    for key in match[1].split(".") if match else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def _is_place(answer: object, count: int) -> bool:
    return not isinstance(answer, bool | float) and answer in range(count)


def _is_repeated(choices: Any, answer: Any) -> bool:  # Any: texts, and the number of one or its text
    """Return whether an earlier choice equals a right one: lm-eval takes the first of equal scores."""
    return not isinstance(answer, str) and choices[answer] in choices[:answer]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


class PlainTask:
    """A task whose questions, answers and choices are fields, templates and lists, read by lm-eval's rules.

    lm-eval is not imported, and a template can access only its row.

    Args:
        configuration: the task's YAML with its includes merged.
        fields: fields of the rows.
        first: the first row, which decides for all rows whether choices are in the question, and whether there are
            several answers.

    Raises:
        jinja2.TemplateError: if a template cannot be read.
    """

    def __init__(self, configuration: Mapping[str, Any], fields: Collection[str], first: Row) -> None:  # Any: YAML
        self.OUTPUT_TYPE = str(configuration.get("output_type", "generate_until"))
        said = {key: configuration.get(key) for key in ("doc_to_target", "doc_to_choice")}
        self.config = SimpleNamespace(process_results=None, **said)
        self._configuration, self._first = configuration, first
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        environment.filters["regex_replace"] = lambda text, old, new, count=0: re.sub(old, new, text, count=count)
        strict = {"doc_to_text": environment.overlay(finalize=_not_null)}
        if not self._has_choices:
            strict["doc_to_target"] = environment.overlay(finalize=_printable)
        self._templates = {
            key: strict.get(key, environment).from_string(value)
            for key in _READ
            if isinstance(value := configuration.get(key), str) and value not in fields
        }

    @classmethod
    def of(cls, configuration: Mapping[str, Any], fields: Collection[str], first: Row) -> PlainTask | None:  # Any: YAML
        """Make a task; ``None`` if it needs functions or other filters, which only the worker has."""
        if any(configuration.get(key) is not None for key in ("process_docs", "process_results", "use_prompt")):
            return None
        if any(isinstance(configuration.get(key), Function) for key in _READ):
            return None
        try:
            return cls(configuration, fields, first)
        except jinja2.TemplateError:
            return None

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer; empty unless an answer must equal the right one."""
        metrics = self._configuration.get("metric_list") or [{"metric": "exact_match"}]
        filters = [each for named in self._configuration.get("filter_list") or () for each in named.get("filter") or ()]
        exact = all(each["metric"] == "exact_match" and each.keys() <= _EXACT for each in metrics)
        if not exact or any(each.get("function") not in _SHORTENING for each in filters):
            return []
        stops = (self._configuration.get("generation_kwargs") or {}).get("until") or []
        return [stops] if isinstance(stops, str) else list(filter(None, stops))

    @property
    def multiple_input(self) -> int:
        """Whether the choices are in the question, whose text is then the number of the right choice."""
        return int(self._has_choices and isinstance(self.doc_to_text(self._first), int))

    @property
    def multiple_target(self) -> int:
        """Whether there are several right answers."""
        return int(isinstance(self.doc_to_target(self._first), list))

    def doc_to_text(self, doc: Row) -> Any:  # Any: a text, or the number of a choice
        """Return the question."""
        return self._said("doc_to_text", doc) if "doc_to_text" in self._configuration else ""

    def doc_to_target(self, doc: Row) -> Any:  # Any: a text, a number, or a list of them
        """Return the right answer."""
        said = self._said("doc_to_target", doc)
        if "doc_to_target" in self._templates and str(said).startswith("[") and str(said).endswith("]"):
            try:
                return ast.literal_eval(said)
            except (SyntaxError, ValueError):
                return said
        return said

    def doc_to_choice(self, doc: Row) -> Any:  # Any: usually a list of texts
        """Return the choices."""
        said = self._said("doc_to_choice", doc)
        if "doc_to_choice" in self._templates:
            return ast.literal_eval(said)
        return list(said.values()) if isinstance(self.config.doc_to_choice, dict) else said

    @property
    def _has_choices(self) -> bool:
        return self.config.doc_to_choice is not None

    def _said(self, key: str, doc: Row) -> Any:  # Any: see above
        if key not in self._templates:
            value = self._configuration.get(key)
            return doc[value] if isinstance(value, str) else value
        text = self._templates[key].render(**doc)
        return ast.literal_eval(text) if text.isdigit() and self._has_choices and key != "doc_to_choice" else text


def _not_null(value: object) -> object:
    if value is None:
        raise _NoTextError("the question holds null, which is not a text")
    return value


def _printable(value: object) -> object:
    if value is None or isinstance(value, bool | Mapping):
        raise _NoTextError(f"the right answer is {_json(value)}, which is not a text")
    return value
