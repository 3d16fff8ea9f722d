"""The table of memory: what the weights hold, and the most that loading and running take."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.results.report.block import Block, Measure, conditions, varying
from llmquant.results.report.columns import Filled, table, unknown
from llmquant.results.report.numbers import MIB, number
from llmquant.results.report.table import Cell, Column, Table

_WEIGHTS, _STATE, _LOADING = "weights_bytes", "weights_quantization_state_bytes", "load_peak_bytes"
# Both are above the weights, and have the key-value cache in them.
_RUNNING = ("prefill_peak_bytes", "decode_peak_bytes")
# Told by the rows, the CSV and the JSON; a table to decide from is better without them.
_ELSEWHERE = (
    "weights_parameters_bytes",
    "weights_buffers_bytes",
    "checkpoint_disk_bytes",
    "kv_cache_bytes_per_token",
    "bytes_per_document",
)


def memory_table(block: Block, measures: Sequence[Measure]) -> Table | None:
    """Make the table from measures in bytes; ``None`` where there are none."""
    first = {measure.metric: measure for measure in reversed(measures)}
    columns: list[Filled] = []
    if _WEIGHTS in first:
        weights = _values(block, first[_WEIGHTS])
        columns.append(_sizes(block, first[_WEIGHTS], ("weights", "MiB"), weights))
        if block.baseline in block.variants and len(block.variants) > 1:
            columns.append(_times_smaller(block, first[_WEIGHTS], weights))
    if _STATE in first:
        columns.append(_sizes(block, first[_STATE], ("quantization", "state MiB"), _values(block, first[_STATE])))
    if _LOADING in first:
        columns.append(_sizes(block, first[_LOADING], ("peak MiB", "loading"), _values(block, first[_LOADING])))
    running, footnotes = _running(block, measures)
    known = {_WEIGHTS, _STATE, _LOADING, *_RUNNING, *_ELSEWHERE}
    columns += running + unknown(block, [measure for measure in measures if measure.metric not in known])
    return table(block, "Memory", columns, footnotes)


def _running(block: Block, measures: Sequence[Measure]) -> tuple[list[Filled], list[str]]:
    """Add to the weights the most that a pass adds; a column for each evaluator's prompts."""
    columns: list[Filled] = []
    footnotes: list[str] = []
    apart = varying([measure for measure in measures if measure.metric == _RUNNING[-1]])
    for key in dict.fromkeys(measure.evaluator_key for measure in measures):
        mine = {measure.metric: measure for measure in measures if measure.evaluator_key == key}
        adds = [mine[metric] for metric in _RUNNING if metric in mine]
        if _WEIGHTS not in mine or not adds:
            continue
        held, added = _values(block, mine[_WEIGHTS]), [_values(block, measure) for measure in adds]
        # Unless all of it was measured there is no most.
        totals = [
            weights + max(peak for peak in peaks if peak is not None)
            if weights is not None and None not in peaks
            else None
            for weights, *peaks in zip(held, *added, strict=True)
        ]
        name = ("peak MiB", "running", conditions(adds[-1].at, only=apart, brief=True))
        columns.append(_sizes(block, mine[_WEIGHTS], name, totals))
        passes = " or ".join(measure.metric.partition("_")[0] for measure in adds)
        at = conditions(adds[-1].at)
        footnotes.append(
            f"running: the weights and the most that {passes} adds to them, key-value cache included"
            + (f" ({at})." if at else ".")
        )
    return columns, footnotes


def _times_smaller(block: Block, measure: Measure, weights: Sequence[float | None]) -> Filled:
    base = weights[block.variants.index(block.baseline or "")]
    ratios = [base / size if base and size else None for size in weights]
    return Column(("× smaller",)), _cells(block, measure, ratios, decimals=2)


def _sizes(block: Block, measure: Measure, name: tuple[str, ...], values: Sequence[float | None]) -> Filled:
    return Column(name), _cells(block, measure, [None if v is None else v / MIB for v in values], decimals=1)


def _cells(block: Block, measure: Measure, values: Sequence[float | None], *, decimals: int) -> list[Cell]:
    return [
        block.no_cell(variant, measure.evaluator_key) if value is None else Cell(number(value, decimals))
        for variant, value in zip(block.variants, values, strict=True)
    ]


def _values(block: Block, measure: Measure) -> list[float | None]:
    found = [block.row(variant, measure) for variant in block.variants]
    return [None if row is None else row.value for row in found]
