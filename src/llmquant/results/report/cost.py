"""The tables of cost: memory, speed, other measurements of the machine, and dollars paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmquant.machine.hardware import MIB
from llmquant.results.costs import PASSES, PER_DOLLAR, PER_DOLLAR_PAID, RUNNING, SERVED
from llmquant.results.report.block import Block, Measure, conditions, ordered, varying
from llmquant.results.report.quality import is_quality
from llmquant.results.report.retrieval import LATENCIES, headlines
from llmquant.results.report.table import Cell, Column, Table, decimals_for, decimals_of, number
from llmquant.results.row import Row
from llmquant.study.experiment import RunId

_Filled: TypeAlias = tuple[Column, list[Cell]]
"""A column and its cells, one per variant."""


def cost_tables(block: Block) -> list[Table]:
    """Make the tables that have measurements."""
    costs = [measure for measure in block.measures if not is_quality(block, measure)]
    memory = [measure for measure in costs if measure.unit == "bytes"]
    speed = [measure for measure in costs if measure.metric in _SPEED_METRICS]
    known = {*memory, *speed}
    other = [m for m in costs if m not in known and not (m.metric.startswith(LATENCIES) and headlines(block))]
    found = (
        _memory_table(block, memory),
        _speed_table(block, speed),
        _table(block, "Other measurements", _unknown(block, other)),
    )
    return [each for each in found if each is not None]


_WEIGHTS, _STATE, _LOADING = "weights_bytes", "weights_quantization_state_bytes", "load_peak_bytes"
_SERVED = "weights_served_bytes"
# Only in the rows, the CSV and the JSON; a table for decisions is better without them.
_UNSHOWN_MEMORY = (
    "weights_parameters_bytes",
    "weights_buffers_bytes",
    "checkpoint_disk_bytes",
    "kv_cache_bytes_per_token",
    "bytes_per_document",
)


def _memory_table(block: Block, measures: Sequence[Measure]) -> Table | None:
    """Make the table from measures in bytes; ``None`` where there are none."""
    first = {measure.metric: measure for measure in reversed(measures)}
    columns: list[_Filled] = []
    if _WEIGHTS in first:
        weights = _values(block, first[_WEIGHTS])
        columns.append(_sizes(block, first[_WEIGHTS], ("weights", "MiB"), weights))
        if _SERVED in first:
            served = _values(block, first[_SERVED])
            columns.append(_sizes(block, first[_SERVED], ("weights", "served MiB"), served))
            weights = [here if there is None else there for here, there in zip(weights, served, strict=True)]
        if block.baseline in block.variants and len(block.variants) > 1:
            columns.append(_times_smaller(block, first[_WEIGHTS], weights))
    if _STATE in first:
        columns.append(_sizes(block, first[_STATE], ("quantization", "state MiB"), _values(block, first[_STATE])))
    if _LOADING in first:
        columns.append(_sizes(block, first[_LOADING], ("peak MiB", "loading"), _values(block, first[_LOADING])))
    running, footnotes = _running(block, measures)
    if _SERVED in first:
        footnotes.append(
            "served: the weights in the file or server, for variants that run dequantized here; × smaller and the "
            "recommendation use these sizes."
        )
    known = {_WEIGHTS, _SERVED, _STATE, _LOADING, RUNNING, SERVED, *PASSES, *_UNSHOWN_MEMORY}
    columns += running + _unknown(block, [measure for measure in measures if measure.metric not in known])
    return _table(block, "Memory", columns, footnotes)


def _running(block: Block, measures: Sequence[Measure]) -> tuple[list[_Filled], list[str]]:
    """Fill a column per evaluator's prompts with the peak while running, here and where the variant is served."""
    peaks = [measure for measure in measures if measure.metric == RUNNING]
    served = [measure for measure in measures if measure.metric == SERVED]
    apart = varying(peaks)
    columns = [
        _sizes(block, peak, ("peak MiB", name, conditions(peak.at, only=apart, brief=True)), _values(block, peak))
        for name, found in (("running", peaks), ("served", served))
        for peak in found
    ]
    at = dict.fromkeys(f" ({text})" if (text := conditions(peak.at)) else "" for peak in peaks)
    notes = [f"running: the weights and the largest peak of a pass, key-value cache included{text}." for text in at]
    return columns, notes


def _times_smaller(block: Block, measure: Measure, weights: Sequence[float | None]) -> _Filled:
    base = weights[block.variants.index(block.baseline or "")]
    ratios = [base / size if base and size else None for size in weights]
    return Column(("× smaller",)), _cells(block, measure, ratios, decimals=2)


def _sizes(block: Block, measure: Measure, name: tuple[str, ...], values: Sequence[float | None]) -> _Filled:
    return Column(name), _cells(block, measure, [None if v is None else v / MIB for v in values], decimals=1)


def _cells(block: Block, measure: Measure, values: Sequence[float | None], *, decimals: int) -> list[Cell]:
    return [
        block.no_cell(variant, measure.evaluator_key) if value is None else Cell(number(value, decimals))
        for variant, value in zip(block.variants, values, strict=True)
    ]


def _values(block: Block, measure: Measure) -> list[float | None]:
    found = [block.row(variant, measure) for variant in block.variants]
    return [None if row is None else row.value for row in found]


@dataclass(frozen=True)
class _Shown:
    """How a metric is shown.

    Attributes:
        unit: unit, shown after the name.
        at: conditions that are always in the heading.
        ends: whether the smallest and the largest conditions are shown; otherwise only the largest.
        beside: a metric shown in brackets after the value.
    """

    name: str
    unit: str
    at: tuple[str, ...]
    ends: bool
    beside: str = ""


_SHOWN = {
    "prefill_ms": _Shown("prefill", " ms", ("prompt_tokens",), ends=True),
    "ttft_ms": _Shown("TTFT", " ms", ("prompt_tokens",), ends=False),
    "decode_ms_per_token": _Shown(
        "decode", " ms/token", ("prompt_tokens",), ends=False, beside="decode_ms_per_token_p95"
    ),
    "generated_tokens_per_s": _Shown("tokens/s", "", ("batch",), ends=True),
    "documents_per_s": _Shown("documents/s", "", (), ends=False),
    PER_DOLLAR: _Shown("documents/dollar", "", (), ends=False),
    PER_DOLLAR_PAID: _Shown("documents/dollar paid", "", (), ends=False),
}
# Only in the rows, the CSV and the JSON; a table for decisions is better without them.
_UNSHOWN_SPEED = (
    "prefill_ms_p95",
    "ttft_ms_p95",
    "decode_ms_per_token_p95",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
)
_INDEXING = {
    "documents_per_s": "documents/s: while documents are encoded; loading, reading files and building an index are not "
    "included.",
    PER_DOLLAR: "documents/dollar: the same at the given price.",
    PER_DOLLAR_PAID: "documents/dollar paid: of all that the run cost, its share of starting and loading included; "
    "dollars_per_hour gives the number for encoding alone.",
}
_SPEED_METRICS = frozenset([*_SHOWN, *_UNSHOWN_SPEED])


def _speed_table(block: Block, measures: Sequence[Measure]) -> Table | None:
    """Make the table from measures of `_SPEED_METRICS`; ``None`` where there are none."""
    columns: list[_Filled] = []
    constant: dict[str, dict[str, None]] = {}
    for metric, shown in _SHOWN.items():
        all_of_it = [measure for measure in measures if measure.metric == metric]
        headed = varying(all_of_it) | set(shown.at)
        for key in dict.fromkeys(measure.evaluator_key for measure in all_of_it):
            mine = ordered(measure for measure in all_of_it if measure.evaluator_key == key)
            for measure in dict.fromkeys([mine[0], mine[-1]] if shown.ends else [mine[-1]]):
                like = (shown.beside, key, measure.at)
                beside = next((m for m in measures if (m.metric, m.evaluator_key, m.at) == like), None)
                name = f"{shown.name}{shown.unit}{'' if beside is None else ' (p95)'}"
                at = conditions(measure.at, only=headed, brief=True)
                columns.append(_measured(block, measure, (name, at), beside=beside))
            rest = conditions(mine[-1].at, only={name for name, _ in mine[-1].at} - headed)
            constant.setdefault(rest, {})[shown.name] = None
    notes = [f"{', '.join(names)}: {rest}." for rest, names in constant.items() if rest]
    notes += [text for metric, text in _INDEXING.items() if any(m.metric == metric for m in measures)]
    return _table(block, "Speed", columns, [" ".join(["Medians of repeated passes.", *notes])])


def money_table(rows: Sequence[Row]) -> Table | None:
    """Make the table with one line per run; ``None`` if running was free."""
    paid: dict[RunId, list[Row]] = {}
    for row in rows:
        if row.dollars is not None:
            paid.setdefault(row.run_id, []).append(row)
    if not paid:
        return None
    lines = []
    for found in paid.values():
        first = found[0]
        dollars, samples = first.dollars or 0.0, _samples(found)
        thousand = _dollars(1000 * dollars / samples) if samples else "–"
        lines.append((" · ".join([first.variant, first.evaluator]), _dollars(dollars), thousand))
    total = sum(found[0].dollars or 0.0 for found in paid.values())
    footnote = (
        f"About ${total:.2f} in total, estimated from the machines' running times and rates. The cost of starting and "
        "loading is divided in proportion to the runs' times."
    )
    return Table("Paid", ("run", "dollars", "dollars per 1,000 samples"), tuple(lines), (footnote,))


def _dollars(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _samples(rows: Sequence[Row]) -> int:
    """Count a run's scored samples; 0 for a hardware evaluator."""
    by_task: dict[str, int] = {}
    for row in rows:
        if row.hardware is None and row.n is not None:
            by_task[row.task] = max(row.n, by_task.get(row.task, 0))
    return sum(by_task.values())


def _measured(block: Block, measure: Measure, name: tuple[str, ...], *, beside: Measure | None = None) -> _Filled:
    """Fill a column with a measure's values; those of a second measure follow in brackets."""
    column = block.column(measure)
    factor = 1 / MIB if measure.unit == "bytes" else 1.0
    decimals = decimals_for(factor * row.stderr for row in column if row.stderr)
    if decimals is None:
        decimals = decimals_of(factor * row.value for row in column if row.value is not None)

    def write(row: Row) -> Cell:
        text = number(factor * (row.value or 0.0), decimals)
        if row.stderr is not None:
            text += f" ± {number(factor * row.stderr, decimals)}"
        second = None if beside is None else block.row(row.variant, beside)
        if second is not None and second.value is not None:
            text += f" ({number(factor * second.value, decimals)})"
        return Cell(text)

    return Column(name), [block.cell(variant, measure, write) for variant in block.variants]


def _unknown(block: Block, measures: Sequence[Measure]) -> list[_Filled]:
    """Fill columns with metrics unknown to llmquant, each at its smallest and largest conditions."""
    found = []
    for metric in dict.fromkeys((m.evaluator_key, m.task, m.metric, m.unit) for m in measures):
        mine = ordered(m for m in measures if (m.evaluator_key, m.task, m.metric, m.unit) == metric)
        for measure in dict.fromkeys([mine[0], mine[-1]]):
            unit = "MiB" if measure.unit == "bytes" else measure.unit
            name = f"{measure.metric.removesuffix('_bytes').replace('_', ' ')} {unit}".strip()
            found.append(_measured(block, measure, (measure.task, name, conditions(measure.at, only=varying(mine)))))
    return found


def _table(block: Block, title: str, columns: Sequence[_Filled], footnotes: Sequence[str] = ()) -> Table | None:
    """Make a table of the variants' names and the columns; ``None`` if there are no columns."""
    if not columns:
        return None
    names = [Cell(variant) for variant in block.variants]
    rows = tuple(zip(names, *(cells for _, cells in columns), strict=True))
    heads = (Column(("variant",), align="left"), *(column for column, _ in columns))
    return Table(title, heads, rows, tuple(footnotes)).without_empty_rows()
