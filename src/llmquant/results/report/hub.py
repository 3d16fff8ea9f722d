"""A variant's results for the Hugging Face Hub: a model card with a ``model-index``, and ``.eval_results`` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmquant.errors import UnknownNameError, nearest
from llmquant.results.report.protocol import protocol_table
from llmquant.results.report.summary import summary
from llmquant.results.report.text import to_markdown
from llmquant.results.row import Row
from llmquant.study.margins import is_share
from llmquant.study.neutral import markdown_text
from llmquant.study.run import Run

if TYPE_CHECKING:
    from llmquant.results.comparison import Comparison

_TASK = "text-generation"
# Of data in a local file, lm-eval names only the reader.
_NOT_ON_THE_HUB = frozenset({"", "json", "csv", "parquet", "text", "arrow"})


def model_card(found: Comparison, variant: str) -> str:
    """Write a model card for a variant: its results as ``model-index``, the verdict, tables and the protocol.

    Raises:
        UnknownNameError: if there is no such variant.
    """
    import yaml
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    every = found.rows()
    rows = _quality(every, variant)
    first = _first(every, variant)
    source = next(e.variant.model for e in found.record.experiments if e.variant.model.digest == first.model_digest)
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=_dataset(found.runs.get(row.run_id), row.task) or row.task,
            dataset_name=row.task,
            metric_type=row.metric,
            metric_name=_difference(row),
            metric_value=row.value,
        )
        for row in rows
    ]
    data: dict[str, Any] = {"library_name": "transformers", "tags": ["llmquant"]}  # Any: YAML
    if source.digest.startswith("commit:"):
        data["base_model"] = source.source
        data |= {} if first.is_baseline else {"base_model_relation": "quantized"}
    if results:
        data["model-index"] = eval_results_to_model_index(f"{first.model} {variant}", results)
    shown = [
        row for row in every if row.model_digest == first.model_digest and (row.is_baseline or row.variant == variant)
    ]
    own = {row.run_id for row in shown}
    runs = {run_id: run for run_id, run in found.runs.items() if run_id in own}
    tables = [*summary(shown, found.record), protocol_table(found.record, runs)]
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()
    return f"---\n{front}\n---\n\n# {markdown_text(f'{first.model}, {variant}')}\n\n{to_markdown(tables)}"


def eval_results(found: Comparison, variant: str) -> dict[str, str]:
    """Write a variant's results as the Hub's ``.eval_results`` files, for tasks whose data set is on the Hub.

    Returns:
        The files' texts by path.

    Raises:
        UnknownNameError: if there is no such variant.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, str] = {}
    counted: dict[str, Row] = {}
    for row in _quality(found.rows(), variant):  # the first metric of a task is its main one
        counted.setdefault(row.task, row)
    for task, row in counted.items():
        run = found.runs[row.run_id]
        dataset = _dataset(run, task)
        if dataset is not None:
            notes = f"{variant}, llmquant, {row.evaluator}, n={row.n}" + (
                f"; {said}" if (said := _difference(row)) else ""
            )
            entry = EvalResultEntry(dataset, task, row.value, date=run.finished_at, notes=notes)
            files[f".eval_results/{_name(task)}.yaml"] = yaml.safe_dump(
                eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True
            )
    return files


def _first(rows: Sequence[Row], variant: str) -> Row:
    found = next((row for row in rows if row.variant == variant), None)
    if found is None:
        raise UnknownNameError(f"there is no variant {variant!r}", hint=nearest(variant, {row.variant for row in rows}))
    return found


def _quality(rows: Sequence[Row], variant: str) -> list[Row]:
    """Return a variant's headline scores of single tasks."""
    digest = _first(rows, variant).model_digest
    own = [row for row in rows if row.variant == variant and row.model_digest == digest and row.run_id and row.headline]
    return [row for row in own if row.value is not None and row.hardware is None and not row.unit]


def _difference(row: Row) -> str | None:
    """Say the difference to the baseline and the verdict: ``f1, -14.4 [-27.6, -1.2] to bf16_baseline: undecided``."""
    ratio = row.ratio is not None
    parts = (
        (row.ratio, row.ratio_low, row.ratio_high)
        if ratio
        else (row.difference, row.difference_low, row.difference_high)
    )
    value, low, high = parts
    if value is None or low is None or high is None or row.verdict is None:
        return None
    scale = 100 if is_share(row.metric) else 1
    form = ".3f" if ratio else "+.3g"
    numbers = f"{scale * value:{form}} [{scale * low:{form}}, {scale * high:{form}}]"
    what = "times" if ratio else "points from" if scale == 100 else "from"
    return f"{row.metric}, {numbers} {what} {row.baseline}: {row.verdict}"


def _dataset(run: Run | None, task: str) -> str | None:
    """Return the id of a task's data set on the Hub; ``None`` if it is not from there."""
    details: Any = None if run is None else run.details.get(task)  # Any: a JSON value
    config = details.get("config") if isinstance(details, Mapping) else None
    path = config.get("dataset_path") if isinstance(config, Mapping) else None
    return path if isinstance(path, str) and path not in _NOT_ON_THE_HUB else None


def _name(task: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in task).lstrip(".") or "task"
