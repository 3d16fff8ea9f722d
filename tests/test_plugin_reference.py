"""The reference for plugin authors is what the classes say: fields, types, methods and their meanings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

import llmquant as lq
from llmquant.executors import shipping, worker_process
from llmquant.loading.memory import stored_elements, weight_bytes
from llmquant.loading.replacing import replace_linear
from llmquant.loading.strict import load_strict
from llmquant.plugins.executor import JobState
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.storage.journal import Entry, JournalEvent
from llmquant.study.embedding import Role
from llmquant.study.experiment import PluginUse

PAGE = Path(__file__).parents[1] / "docs" / "plugin-reference.md"
RECORDS = (
    *(lq.PluginSpec, lq.ModelInfo, lq.TensorInfo, lq.Documents, PluginUse, lq.Context, lq.InputFile),
    *(lq.AppliedQuantization, lq.LoadedModel, lq.Cost, lq.Result, lq.Measurement, lq.Sample),
    *(lq.EmbedderInfo, lq.Prepared, lq.LoadedEmbedder, lq.Item, lq.Offer, lq.Job, Entry),
)
CONTRACTS = (
    *(lq.QuantizerOptions, lq.Quantizer, lq.ReplacesLinear, lq.EvaluatorOptions, lq.Evaluator),
    *(lq.EmbedderOptions, lq.Embedder, lq.OpenEmbedder, lq.Executor),
)


FUNCTIONS = {
    "Functions for quantizers and embedders": (replace_linear, plain_bytes, stored_elements, weight_bytes, load_strict),
    "Functions for executors": (
        *(shipping.pack, shipping.unpack, shipping.bring_home),
        *(worker_process.make_folder, worker_process.start, worker_process.is_held),
        *(worker_process.stop, worker_process.stop_other, worker_process.how_it_ended),
    ),
}


def _meanings(cls: type) -> dict[str, str]:
    """Read the ``Attributes:`` of a docstring."""
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w|^\S|\Z)", listed, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('``', '`') for cell in cells)} |"


def _fields(cls: Any) -> Iterator[str]:
    meanings = {name: text for parent in reversed(cls.__mro__) for name, text in _meanings(parent).items()}
    types = {field.name: field.type for field in fields(cls)} if is_dataclass(cls) else inspect.get_annotations(cls)
    yield from ("| field | type | meaning |", "| --- | --- | --- |")
    for name, annotation in types.items():
        yield _row(f"`{name}`", f"`{annotation}`", meanings.get(name, ""))


def _methods(cls: type) -> Iterator[str]:
    """Write one row per public method and property that the class itself defines, with its types."""
    yield from ("| method | meaning |", "| --- | --- |")
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        signature = inspect.signature(inspect.unwrap(function))
        written = name if isinstance(value, property) else f"{name}({', '.join(list(_parameters(signature))[1:])})"
        first = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
        need = "required: " if getattr(function, "__isabstractmethod__", False) else ""
        yield _row(f"`{written} -> {signature.return_annotation}`", need + first.rstrip("."))


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    keyword_only = False
    for name, each in signature.parameters.items():
        if each.kind is each.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        default = "..." if callable(each.default) else repr(each.default)
        yield f"{name}: {each.annotation}" + ("" if each.default is each.empty else f" = {default}")


def functions(title: str) -> str:
    """Write the section of functions that a plugin may call."""
    rows = ["| function | meaning |", "| --- | --- |"]
    for function in FUNCTIONS[title]:
        signature = inspect.signature(inspect.unwrap(function))
        name = f"{inspect.unwrap(function).__module__}.{function.__name__}"
        first = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
        returns = str(signature.return_annotation)
        rows.append(_row(f"`{name}({', '.join(_parameters(signature))}) -> {returns}`", first.rstrip(".")))
    return f"### {title}\n\n" + "\n".join(rows)


def section(cls: type) -> str:
    """Write a class's section of the page."""
    parts = [f"### `{cls.__name__}`"]
    if is_dataclass(cls) or inspect.get_annotations(cls):
        parts.append("\n".join(_fields(cls)))
    rows = list(_methods(cls))
    if len(rows) > 2:
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


@pytest.mark.parametrize("cls", [*RECORDS, *CONTRACTS], ids=lambda cls: cls.__name__)
def test_each_class_is_described_as_it_is(cls):
    """Its fields with their types, and its methods with their signatures; everything has a meaning."""
    assert section(cls) in PAGE.read_text(), "run: python tests/test_plugin_reference.py"
    assert " |  |" not in section(cls)


@pytest.mark.parametrize("title", FUNCTIONS)
def test_each_function_is_described_as_it_is(title):
    """Its module, its parameters with their types, and what it does."""
    assert functions(title) in PAGE.read_text(), "run: python tests/test_plugin_reference.py"


def test_the_values_that_strings_can_have_are_listed():
    """Roles, states of jobs and events of journals."""
    text = PAGE.read_text()
    for values in (get_args(Role), get_args(JobState), get_args(JournalEvent)):
        for value in values:
            assert f"`{value}`" in text


if __name__ == "__main__":
    page = PAGE.read_text()
    for each in (*RECORDS, *CONTRACTS):
        page = re.sub(rf"### `{each.__name__}`(\n+\|[^\n]*)*", lambda _, each=each: section(each), page)
    for each in FUNCTIONS:
        page = re.sub(rf"### {each}(\n+\|[^\n]*)*", lambda _, each=each: functions(each), page)
    PAGE.write_text(page)
