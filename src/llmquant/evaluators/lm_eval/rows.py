"""Local JSONL rows in place of a task's own data: whether every row has the fields that the task's templates read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmquant.catalogs.lm_eval_yaml import Function, leaves
from llmquant.errors import OptionError
from llmquant.evaluators.lm_eval.answers import HINT, PlainTask, mistake
from llmquant.storage.text_files import read_rows

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")


def _fields(task: Mapping[str, Any]) -> list[str]:  # Any: YAML values
    """Name the fields that every row needs by the task's templates; what code reads, the worker finds when it runs."""
    if task.get("process_docs") is not None:  # templates see processed rows
        return []
    reads = {name for key in _TEMPLATES if isinstance(text := task.get(key), str) for name in _template_fields(text)}
    target = task.get("doc_to_target")
    if isinstance(target, str) and target.isidentifier():
        reads.add(target)  # lm-eval takes it for literal text where no row has the field
    return sorted(reads)


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
    fields = _fields(configuration)
    if group is not None and configuration.get("process_docs") is None:
        fields.append(group)
    for number, row in rows:
        for field in fields:
            if not _has(row, field):
                found = ", ".join(map(repr, row)) or "nothing"
                raise OptionError(
                    f"{where}, line {number} has no {field!r}; it has {found}",
                    hint=f"Task {task!r} reads {', '.join(fields)}.",
                )
    plain = PlainTask.of(configuration, {key for _, row in rows for key in row}, rows[0][1])
    for number, row in rows:
        if plain and (wrong := mistake(plain, row)):
            raise OptionError(f"{where}, line {number}: {wrong}", hint=HINT)
    return len(rows)


def row_texts(rows: Path, name: str) -> Iterator[str]:
    """Yield every text in the rows, at any depth."""
    for _, row in read_rows(rows, f"lm_eval: data: {name}"):
        yield from (value for value in leaves(row) if isinstance(value, str))


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


def _has(row: object, field: str) -> bool:
    for key in field.split("."):
        if not isinstance(row, dict) or key not in row:
            return False
        row = row[key]
    return True


def _template_fields(template: str) -> set[str]:
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
    return set(names) - {node.name for node in guarded if isinstance(node, nodes.Name)}
