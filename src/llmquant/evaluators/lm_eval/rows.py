"""Local JSONL rows in place of a task's own data: which fields the task reads, and whether every row has them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llmquant.catalogs.lm_eval_yaml import Function
from llmquant.errors import OptionError
from llmquant.evaluators.lm_eval.answers import HINT, PlainTask, mistake
from llmquant.storage.text_files import read_rows

Field: TypeAlias = tuple[str, ...]  # ("questions", "input_text") is row["questions"]["input_text"]

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")


def fields_of(task: Mapping[str, Any]) -> tuple[Field, ...]:  # Any: YAML values
    """Tell which fields of a row a task reads for certain; what it reads conditionally is left out.

    Args:
        task: its YAML with includes merged, from `read_task`.
    """
    reads: set[Field] = set()
    process = task.get("process_docs")  # what comes after it sees processed rows
    for value in (process,) if process is not None else (task.get(key) for key in _TEMPLATES):
        if isinstance(value, Function):
            reads |= _python_fields(value)
        elif isinstance(value, str):
            reads |= _template_fields(value)
    if process is None and _is_name(target := task.get("doc_to_target")):
        reads.add((str(target),))  # lm-eval takes it for literal text where no row has the field
    return tuple(sorted(path for path in reads if not any(path == other[: len(path)] for other in reads - {path})))


def check_rows(
    file: Path, name: str, task: str, configuration: Mapping[str, Any], group: str | None
) -> int:  # Any: YAML values
    """Read all rows and return how many there are.

    Args:
        name: what to call the file in messages.
        configuration: the task's YAML with includes merged, from `read_task`.
        group: field that the task's documents must have besides, if any.

    Raises:
        OptionError: for the first line that is not a JSON object, lacks a field, or has no answer that can be right.
    """
    where = f"lm_eval: data: {name}"
    rows = list(read_rows(file, where))
    if not rows:
        raise OptionError(f"{where} holds no rows")
    fields = fields_of(configuration)
    if group is not None and configuration.get("process_docs") is None:
        fields = (*fields, tuple(group.split(".")))
    for number, row in rows:
        for field in fields:
            if not _has(row, field):
                found = ", ".join(map(repr, row)) or "nothing"
                raise OptionError(
                    f"{where}, line {number} has no {'.'.join(field)!r}; it has {found}",
                    hint=f"Task {task!r} reads {', '.join('.'.join(path) for path in fields)}.",
                )
    plain = PlainTask.of(configuration, {key for _, row in rows for key in row}, rows[0][1])
    for number, row in rows:
        if plain and (wrong := mistake(plain, row)):
            raise OptionError(f"{where}, line {number}: {wrong}", hint=HINT)
    return len(rows)


def row_texts(rows: Path, name: str) -> Iterator[str]:
    """Yield every text in the rows, at any depth."""
    for _, row in read_rows(rows, f"lm_eval: data: {name}"):
        yield from _strings(row)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def rows_in_place(task: Mapping[str, Any], rows: Path, name: str) -> dict[str, Any]:  # Any: YAML values
    """Return the keys that make a task read `rows` instead of its own data.

    The rows become the test split: few-shot examples then come from them too, and lm-eval leaves out the row that is
    being asked, which it does for the test split alone.

    Args:
        task: its YAML with includes merged.
        name: what to call the file in messages.
    """
    fewshot = dict(task.get("fewshot_config") or {})
    fewshot.pop("split", None)
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"local_rows": str(rows), "local_rows_name": name},
        "custom_dataset": Function("llmquant.evaluators.lm_eval.documents", "read_documents"),
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None if "samples" in fewshot else "test",
    } | ({"fewshot_config": fewshot} if "split" in (task.get("fewshot_config") or {}) else {})


def _has(row: object, field: Field) -> bool:
    for key in field:
        if not isinstance(row, dict) or key not in row:
            return False
        row = row[key]
    return True


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _template_fields(template: str) -> set[Field]:
    """List the names a Jinja template needs: lm-eval renders with StrictUndefined, so each must be there."""
    import jinja2
    import jinja2.meta
    from jinja2 import nodes

    environment = jinja2.Environment()
    environment.filters["regex_replace"] = str  # lm-eval's own; only its name counts here
    try:
        tree = environment.parse(template)
        names = jinja2.meta.find_undeclared_variables(tree)
    except jinja2.TemplateError:
        return set()
    guarded = [node.node for node in tree.find_all(nodes.Test) if node.name == "defined"]
    guarded += [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d") and node.node]
    return {(name,) for name in names - {node.name for node in guarded if isinstance(node, nodes.Name)}}


def _python_fields(function: Function) -> set[Field]:
    """List the keys that a function beside the YAML reads from its arguments, by its source."""
    if function.file is None:
        return set()
    try:
        module = ast.parse(function.file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()  # lm-eval will say so when it imports it
    for body in module.body:
        if isinstance(body, ast.FunctionDef) and body.name == function.name:
            return _keys_read(body)
    return set()


def _keys_read(body: ast.FunctionDef) -> set[Field]:
    parameters = {argument.arg for node in ast.walk(body) if isinstance(node, ast.arguments) for argument in node.args}
    reads: set[Field] = set()
    spared: set[str] = set()  # written before, or asked for with `in` or `.get`: a row may lack it
    for node in ast.walk(body):
        if isinstance(node, ast.Subscript) and (path := _path(node, parameters)):
            if isinstance(node.ctx, ast.Load):
                reads.add(path)
            else:
                spared.add(path[0])
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            spared.add(str(node.left.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            spared |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return {path for path in reads if path[0] not in spared}


def _path(node: ast.expr, parameters: set[str]) -> Field:
    """Read ``doc["a"]["b"]`` as ``("a", "b")``; empty for anything else."""
    keys: list[str] = []
    while isinstance(node, ast.Subscript):
        if not (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)):
            return ()
        keys.insert(0, node.slice.value)
        node = node.value
    return tuple(keys) if isinstance(node, ast.Name) and node.id in parameters else ()


__all__ = ["check_rows", "fields_of", "rows_in_place"]
