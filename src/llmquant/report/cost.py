"""The tables of cost: memory, speed, and whatever else depends on the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmquant.comparison import Row
from llmquant.report.block import Block, Measure, conditions, varying
from llmquant.report.numbers import MIB, decimals_for, decimals_of, number
from llmquant.report.quality import is_quality
from llmquant.report.table import Cell, Column, Table


@dataclass(frozen=True)
class _Shown:
    """How a known metric of speed is shown.

    Attributes:
        at: the conditions in its heading, whether they vary or not.
        ends: its smallest and largest conditions; else only the largest.
        beside: a metric that follows it in brackets.
    """

    name: str
    at: tuple[str, ...]
    ends: bool
    beside: str = ""


_SPEED = {
    "prefill_ms": _Shown("prefill ms", ("prompt_tokens",), ends=True),
    "ttft_ms": _Shown("TTFT ms", ("prompt_tokens",), ends=False),
    "decode_ms_per_token": _Shown("decode ms/token", ("prompt_tokens",), ends=False, beside="decode_ms_per_token_p95"),
    "generated_tokens_per_s": _Shown("tokens/s", ("batch",), ends=True),
}
_WEIGHTS, _STATE, _LOADING = "weights_bytes", "weights_quantization_state_bytes", "load_peak_bytes"
# Above the weights, the key-value cache included.
_RUNNING = ("prefill_peak_bytes", "decode_peak_bytes")
# Told by the rows, the CSV and the JSON; a table to decide from is better without them.
_ELSEWHERE = frozenset(
    {
        "weights_parameters_bytes",
        "weights_buffers_bytes",
        "checkpoint_disk_bytes",
        "kv_cache_bytes_per_token",
        "prefill_ms_p95",
        "ttft_ms_p95",
        "decode_ms_per_token_p95",
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
    }
)


def cost_tables(block: Block) -> list[Table]:
    """Make the tables for which there are measurements."""
    costs = [measure for measure in block.measures if not is_quality(block, measure)]
    memory = [measure for measure in costs if measure.unit == "bytes"]
    speed = [m for m in costs if m.metric in _SPEED or m.metric.removesuffix("_p95") in _SPEED]
    other = [m for m in costs if m not in memory and m not in speed and m.metric not in _ELSEWHERE]
    found = [_memory(block, memory), _speed(block, speed), _plain(block, other, "Other measurements")]
    return [table for table in found if table is not None]


def _memory(block: Block, measures: Sequence[Measure]) -> Table | None:
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    footnotes = []
    for key in dict.fromkeys(measure.evaluator_key for measure in measures):
        mine = {measure.metric: measure for measure in measures if measure.evaluator_key == key}

        def add(name: tuple[str, ...], values: list[float | None], key: str = key, *, decimals: int = 1) -> None:
            columns.append(Column(name))
            cells.append([_written(block, key, *pair, decimals) for pair in zip(block.variants, values, strict=True)])

        if _WEIGHTS in mine:
            weights = _values(block, mine[_WEIGHTS])
            add(("weights", "MiB"), _mib(weights))
            if block.baseline is not None and len(block.variants) > 1:
                base = weights[block.variants.index(block.baseline)] if block.baseline in block.variants else None
                add(("× smaller",), [base / w if base and w else None for w in weights], decimals=2)
        if _STATE in mine:
            add(("quantization", "state MiB"), _mib(_values(block, mine[_STATE])))
        if _LOADING in mine:
            add(("peak MiB", "loading"), _mib(_values(block, mine[_LOADING])))
        adds = [mine[metric] for metric in _RUNNING if metric in mine]
        if _WEIGHTS in mine and adds:
            add(("peak MiB", "running"), _mib(_running(block, mine[_WEIGHTS], adds)))
            at = conditions(adds[-1].at)
            footnotes.append(
                "running: the weights and the most that "
                + " or ".join(measure.metric.partition("_")[0] for measure in adds)
                + " adds to them, key-value cache included" + (f" ({at})." if at else ".")
            )
    known = {_WEIGHTS, _STATE, _LOADING, *_RUNNING} | _ELSEWHERE
    table = _plain(block, [measure for measure in measures if measure.metric not in known], "Memory")
    if table is not None:
        columns += [table.column(index) for index in range(1, len(table.columns))]
        cells += [[row[index] for row in table.cells()] for index in range(1, len(table.columns))]
    return _table(block, "Memory", columns, cells, footnotes)


def _running(block: Block, weights: Measure, adds: Sequence[Measure]) -> list[float | None]:
    """Add to the weights the most that a pass adds; ``None`` unless all of it was measured."""
    held = _values(block, weights)
    added = [_values(block, measure) for measure in adds]
    totals: list[float | None] = []
    for index, weight in enumerate(held):
        peaks = [values[index] for values in added]
        known = [peak for peak in peaks if peak is not None]
        totals.append(weight + max(known) if weight is not None and len(known) == len(peaks) else None)
    return totals


def _speed(block: Block, measures: Sequence[Measure]) -> Table | None:
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    rest: dict[str, list[str]] = {}
    for metric, shown in _SPEED.items():
        for key in dict.fromkeys(measure.evaluator_key for measure in measures):
            mine = sorted(
                (measure for measure in measures if measure.metric == metric and measure.evaluator_key == key),
                key=lambda measure: [(value if isinstance(value, int | float) else 0) for _, value in measure.at],
            )
            if not mine:
                continue
            keys = varying(mine) | set(shown.at)
            for measure in dict.fromkeys([mine[0], mine[-1]] if shown.ends else [mine[-1]]):
                beside = next(
                    (m for m in measures if m.metric == shown.beside and (m.evaluator_key, m.at) == (key, measure.at)),
                    None,
                )
                at = conditions(measure.at, only=keys, brief=True)
                columns.append(Column((shown.name + (" (p95)" if beside else ""), at)))
                cells.append(_column(block, measure, beside=beside))
            constant = conditions(mine[-1].at, only={key for key, _ in mine[-1].at} - keys)
            if constant:
                rest.setdefault(constant, []).append(shown.name.rpartition(" ")[0] or shown.name)
    medians = ["Medians of repeated passes."] if any(column.name[0] != "tokens/s" for column in columns) else []
    notes = [f"{', '.join(dict.fromkeys(names))}: {constant}." for constant, names in rest.items()]
    return _table(block, "Speed", columns, cells, [" ".join([*medians, *notes])] if medians or notes else [])


def _plain(block: Block, measures: Sequence[Measure], title: str) -> Table | None:
    """Make a table of metrics that nobody here knows, each at its smallest and largest conditions."""
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    for first in dict.fromkeys((m.evaluator_key, m.task, m.metric, m.unit) for m in measures):
        mine = [m for m in measures if (m.evaluator_key, m.task, m.metric, m.unit) == first]
        for measure in dict.fromkeys([mine[0], mine[-1]]):
            unit = "MiB" if measure.unit == "bytes" else measure.unit
            name = measure.metric.removesuffix("_bytes").replace("_", " ")
            name = name if name.endswith(unit) else f"{name} {unit}"
            columns.append(Column((measure.task, name, conditions(measure.at, only=varying(mine)))))
            cells.append(_column(block, measure))
    return _table(block, title, columns, cells, [])


def _column(block: Block, measure: Measure, *, beside: Measure | None = None) -> list[Cell]:
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

    return [block.cell(variant, measure, write) for variant in block.variants]


def _table(
    block: Block,
    title: str,
    columns: Sequence[Column],
    cells: Sequence[Sequence[Cell]],
    footnotes: Iterable[str],
) -> Table | None:
    if not columns:
        return None
    names = [Cell(variant) for variant in block.variants]
    rows = tuple(zip(names, *cells, strict=True))
    return Table(title, (Column(("variant",), align="left"), *columns), rows, tuple(footnotes))


def _values(block: Block, measure: Measure) -> list[float | None]:
    found = [block.row(variant, measure) for variant in block.variants]
    return [None if row is None else row.value for row in found]


def _mib(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else value / MIB for value in values]


def _written(block: Block, key: str, variant: str, value: float | None, decimals: int) -> Cell:
    return block.no_cell(variant, key) if value is None else Cell(number(value, decimals))


