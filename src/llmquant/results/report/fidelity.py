"""The table of fidelity: how far the next-token probabilities of each variant are from the baseline's."""

from __future__ import annotations

from collections.abc import Mapping

from llmquant.results.report.block import Block, Measure, sample_count
from llmquant.results.report.table import Cell, Column, Table, decimals_for, decimals_of, number
from llmquant.results.row import Row

# The table's columns, where they were measured: metric, heading, factor.
_COLUMNS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("kl_divergence", ("mean KL", "nats"), 1.0),
    ("kl_excess", ("above floor", "nats"), 1.0),
    ("kl_p999", ("99.9% KL", "nats"), 1.0),
    ("top1_agreement", ("same top", "token %"), 100.0),
)


def is_fidelity(block: Block, measure: Measure) -> bool:
    """Return whether these tables show a measure: one of their columns, beside a divergence of the same text."""
    beside = any(
        (m.evaluator_key, m.task, m.metric) == (measure.evaluator_key, measure.task, "kl_divergence")
        for m in block.measures
    )
    return beside and any(measure.metric == metric for metric, _, _ in _COLUMNS)


def fidelity_tables(block: Block) -> list[Table]:
    """Make one table per evaluator and text; the divergence by position and by confidence is only in charts."""
    found = []
    rows = [row for row in block.rows if row.metric.startswith(("kl_", "top1_")) and row.run_id and not row.at]
    for key in dict.fromkeys((row.evaluator_key, row.task) for row in rows if row.metric == "kl_divergence"):
        own = {(row.variant, row.metric): row for row in rows if (row.evaluator_key, row.task) == key}
        compared = [variant for variant in block.variants if variant != block.baseline]
        shown = [each for each in _COLUMNS if any((variant, each[0]) in own for variant in compared)]
        columns = [Column(("variant",), align="left"), *(Column(heading) for _, heading, _ in shown)]
        cells = [_cells(block, own, compared, key[0], metric, factor) for metric, _, factor in shown]
        lines = tuple(zip(map(Cell, compared), *cells, strict=True))
        if lines and shown:
            title = f"Fidelity to {block.baseline} on {key[1]} {sample_count(list(own.values()))}".rstrip()
            found.append(Table(title, tuple(columns), lines, tuple(_footnotes(own))))
    return found


def _cells(
    block: Block, own: Mapping[tuple[str, str], Row], variants: list[str], key: str, metric: str, factor: float
) -> list[Cell]:
    known = [row for variant in variants if (row := own.get((variant, metric))) is not None]
    decimals = decimals_for(factor * row.stderr for row in known if row.stderr)
    if decimals is None:
        decimals = decimals_of((factor * row.value for row in known if row.value is not None), digits=3)
    cells = []
    for variant in variants:
        row = own.get((variant, metric))
        if row is None or row.value is None:
            cells.append(block.no_cell(variant, key))
            continue
        text = number(factor * row.value, decimals)
        cells.append(Cell(text if row.stderr is None else f"{text} ± {number(factor * row.stderr, decimals)}"))
    return cells


def _footnotes(own: Mapping[tuple[str, str], Row]) -> list[str]:
    notes = ["KL: divergence of the next token's probabilities from the baseline's; ± is one standard error."]
    floor = next((row.value for (_, metric), row in own.items() if metric == "kl_floor" and row.value), None)
    if floor is not None:
        notes.append(f"Floor: the baseline in another dtype is {floor:.2g} nats from itself; less means nothing.")
    return notes
