"""One model's rows, looked up by variant and measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmquant.results.means import SEARCHES
from llmquant.results.report.table import Cell
from llmquant.results.row import Row, by_model
from llmquant.study.counting import counted

_AT = {
    "prompt_tokens": "{} prompt tokens",
    "new_tokens": "{} new tokens",
    "decode_tokens": "{} decoded tokens",
    "batch": "batch {}",
}
_BRIEF = {"prompt_tokens": "{} tokens"}
# What an evaluator counts as one sample.
_SAMPLES = {
    **dict.fromkeys(("lm_eval", "lm-eval"), "document"),
    "perplexity": "window",
    "fidelity": "window",
    **dict.fromkeys(("mteb", "retrieval", "beir", "drift", SEARCHES), "query"),
}


@dataclass(frozen=True)
class Measure:
    """A metric with its evaluator and conditions; only equal measures are compared.

    Attributes:
        evaluator_key: equal for equal evaluators, options, documents, seeds and hardware.
        evaluator: label, for people.
        at: the conditions, as sorted items.
    """

    evaluator_key: str
    evaluator: str
    task: str
    metric: str
    unit: str
    at: tuple[tuple[str, int | float | str], ...]

    @classmethod
    def of(cls, row: Row) -> Measure:
        """Return the measure of a row with a value."""
        at = tuple(sorted(row.at.items()))
        return cls(row.evaluator_key, row.evaluator, row.task, row.metric, row.unit, at)


@dataclass(frozen=True)
class Block:
    """The rows of one model.

    Attributes:
        model: the model as requested.
        variants: labels, the baseline first.
        baseline: label of the baseline; ``None`` if the study has no baseline.
        rows: in the order of the study.
    """

    model: str
    variants: tuple[str, ...]
    baseline: str | None
    rows: tuple[Row, ...]

    @cached_property
    def measures(self) -> list[Measure]:
        """List the headline measures in the order of the study, without means over tasks."""
        return list(dict.fromkeys(Measure.of(row) for row in self.rows if row.metric and row.headline and row.run_id))

    @cached_property
    def _by_measure(self) -> Mapping[tuple[str, Measure], Row]:
        return {(row.variant, Measure.of(row)): row for row in self.rows if row.metric}

    @cached_property
    def _status(self) -> Mapping[tuple[str, str], str]:
        return {(row.variant, row.evaluator_key): row.status for row in self.rows}

    def row(self, variant: str, measure: Measure) -> Row | None:
        """Look a variant's row up."""
        return self._by_measure.get((variant, measure))

    def headlines(self, variant: str, evaluator_key: str, task: str) -> list[Row]:
        """Look up a variant's headlines of one task."""
        own = (row for row in self.rows if (row.variant, row.evaluator_key, row.task) == (variant, evaluator_key, task))
        return [row for row in own if row.metric and row.headline]

    def means(self, variant: str, tasks: Sequence[str]) -> list[Row]:
        """Look up a variant's means over tasks."""
        return [
            row
            for row in self.rows
            if row.variant == variant and not row.pooled and sorted(row.mean_of) == sorted(tasks)
        ]

    def column(self, measure: Measure) -> list[Row]:
        """Return the rows of one measure, the baseline's first."""
        found = (self.row(variant, measure) for variant in self.variants)
        return [row for row in found if row is not None]

    def cell(self, variant: str, measure: Measure, write: Callable[[Row], Cell]) -> Cell:
        """Write a variant's cell, or the reason for a gap: the experiment failed or has no such value."""
        row = self.row(variant, measure)
        return self.no_cell(variant, measure.evaluator_key) if row is None or row.value is None else write(row)

    def no_cell(self, variant: str, evaluator_key: str) -> Cell:
        """Write the cell of a missing number."""
        failed = self._status.get((variant, evaluator_key)) == "failed"
        return Cell("failed", "failed") if failed else Cell("–", "quiet")


def blocks(rows: Iterable[Row]) -> list[Block]:
    """Group rows by model."""
    return [_block(group) for group in by_model(rows)]


def conditions(
    at: Iterable[tuple[str, int | float | str]], *, only: Iterable[str] | None = None, brief: bool = False
) -> str:
    """Write conditions for people: ``512 prompt tokens, batch 4``; for a heading with `brief`."""
    names = _AT | _BRIEF if brief else _AT
    wanted = None if only is None else set(only)
    items = [(key, value) for key, value in at if wanted is None or key in wanted]
    return ", ".join(names.get(key, key.replace("_", " ") + " {}").format(value) for key, value in items)


def sample_noun(evaluator: str) -> str:
    """Name what an evaluator counts as one sample."""
    return _SAMPLES.get(evaluator.partition("(")[0].rpartition("/")[2], "sample")


def sample_count(column: Sequence[Row]) -> str:
    """Write how many samples are behind values, and what they are: ``(n=50 documents)``; nothing if unknown."""
    counts = [row.n for row in column if row.n is not None]
    if not counts:
        return ""
    noun = "document" if column[0].metric.startswith("cosine") else sample_noun(column[0].evaluator)
    low, high = min(counts), max(counts)
    return f"(n={counted(low, noun)})" if low == high else f"(n={low:,}–{counted(high, noun)})"


def ordered(measures: Iterable[Measure]) -> list[Measure]:
    """Sort measures of one metric from the smallest to the largest conditions."""
    return sorted(measures, key=lambda m: [value if isinstance(value, int | float) else 0 for _, value in m.at])


def varying(measures: Sequence[Measure]) -> set[str]:
    """Return the conditions that differ between measures."""
    keys = {key for measure in measures for key, _ in measure.at}
    return {key for key in keys if len({dict(measure.at).get(key) for measure in measures}) > 1}


def _block(rows: Sequence[Row]) -> Block:
    labels = dict.fromkeys(row.variant for row in sorted(rows, key=lambda row: not row.is_baseline))
    baseline = next((row.variant if row.is_baseline else row.baseline for row in rows), None)
    return Block(rows[0].model, tuple(labels), baseline, tuple(rows))
