"""Read a task from a user's YAML, and refuse the YAML if part of the task lies in other files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmquant.catalogs.lm_eval import TaskIndex
from llmquant.catalogs.lm_eval_yaml import Function, leaves, read_task, read_yaml, strings
from llmquant.errors import OptionError

_WHY = "A run is identified by the content of the files it names, so this YAML must hold the whole task."
# Names that `datasets` reads as a kind of file, not as a data set.
_FILE_KINDS = frozenset({"json", "csv", "parquet", "text", "arrow", "pandas", "xml"})


def read_task_file(path: Path, name: str, index: TaskIndex, *, rows: bool) -> dict[str, Any]:  # Any: YAML values
    """Read the YAML of one task with its includes merged.

    Args:
        path: path of the YAML on this machine.
        name: the YAML's name in messages.
        index: lm-eval's own tasks, which the YAML may include, and whose names it may not use.
        rows: whether local rows replace the task's own data.

    Raises:
        OptionError: if the YAML is not a task, or if part of the task lies in other local files.
    """
    where = f"lm_eval: {name}"
    try:
        includes = strings(read_yaml(path.read_text(encoding="utf-8")).get("include"))
        foreign = [include for include in includes if not Path(include).is_relative_to(index.root)]
        task = {} if foreign else read_task(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"{where} cannot be read: {error}", hint="See lm-eval's guide to new tasks.") from error
    if foreign:
        raise OptionError(f"{where} includes {foreign[0]}", hint=_WHY)
    own = task.get("task")
    if not isinstance(own, str) or "group" in task:
        raise OptionError(
            f"{where} defines no task; it has {', '.join(map(repr, task))}", hint="Add a line task: NAME."
        )
    if own in index.entries:
        raise OptionError(f"{where} defines {own!r}, which lm-eval has too", hint="Use another name for the task.")
    for value in leaves(task):
        if isinstance(value, Function) and not _is_found(value, index):
            raise OptionError(f"{where} uses !function {value.module}.{value.name}", hint=_WHY)
    if not rows and (data := _local_data(task)):
        raise OptionError(f"{where} reads {data}", hint=f"{_WHY} Pass the rows separately: lm_eval({name}, data=FILE).")
    return task


def _is_found(function: Function, index: TaskIndex) -> bool:
    if function.file is not None:
        return function.file.is_relative_to(index.root)
    return bool(function.module) and importlib.util.find_spec(function.module.split(".")[0]) is not None


def _local_data(task: Mapping[str, Any]) -> str:  # Any: YAML values
    """Name the local file with a task's rows; empty if the rows come from elsewhere."""
    path = str(task.get("dataset_path") or "")
    files = (task.get("dataset_kwargs") or {}).get("data_files")
    if path in _FILE_KINDS and files is not None and "://" not in str(files):
        return f"data_files {files}"
    return f"dataset_path {path}" if path and path not in _FILE_KINDS and Path(path).exists() else ""
