"""mteb's tasks as a table: modalities, main metric and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmquant.results.report.table import Column, Table
from llmquant.study.call import Json
from llmquant.study.counting import counted


def task_table(tasks: Sequence[Any]) -> Table:  # Any: MtebTask; reports do not import evaluators
    """Build a table with one row per task; sizes come from mteb, where mteb has counted."""
    columns = (
        Column(("mteb task",), align="left"),
        Column(("holds",), align="left"),
        Column(("main metric",), align="left"),
        Column(("queries",)),
        Column(("documents",)),
        Column(("languages",)),
    )
    rows = tuple(
        (
            task.name,
            " + ".join(task.modalities),
            task.main_score,
            _count(task.queries),
            _count(task.documents),
            str(len(task.languages)),
        )
        for task in tasks
    )
    return Table(f"{counted(len(tasks), 'task')} of mteb", columns, rows)


def task_json(task: Any) -> dict[str, Json]:  # Any: MtebTask
    """Return a task's table row and its languages as JSON."""
    return {
        "name": task.name,
        "type": task.type,
        "modalities": list(task.modalities),
        "main_metric": task.main_score,
        "queries": task.queries,
        "documents": task.documents,
        "subsets": list(task.subsets),
        "languages": list(task.languages),
    }


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
