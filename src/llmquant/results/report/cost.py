"""The tables of cost: memory, speed, and whatever else depends on the machine."""

from __future__ import annotations

from llmquant.results.report.block import Block
from llmquant.results.report.columns import table, unknown
from llmquant.results.report.memory_table import memory_table
from llmquant.results.report.quality import is_quality
from llmquant.results.report.retrieval_table import LATENCIES, headlines
from llmquant.results.report.speed_table import METRICS, speed_table
from llmquant.results.report.table import Table


def cost_tables(block: Block) -> list[Table]:
    """Make the tables for which there are measurements."""
    costs = [measure for measure in block.measures if not is_quality(block, measure)]
    memory = [measure for measure in costs if measure.unit == "bytes"]
    speed = [measure for measure in costs if measure.metric in METRICS]
    known = {*memory, *speed}
    other = [m for m in costs if m not in known and not (m.metric.startswith(LATENCIES) and headlines(block))]
    found = (
        memory_table(block, memory),
        speed_table(block, speed),
        table(block, "Other measurements", unknown(block, other)),
    )
    return [each for each in found if each is not None]
