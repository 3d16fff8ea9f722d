"""The table of speed: prefill, time to first token, decode and throughput at the smallest and largest sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmquant.results.report.block import Block, Measure, conditions, ordered, varying
from llmquant.results.report.columns import Filled, measured, table
from llmquant.results.report.table import Table


@dataclass(frozen=True)
class _Shown:
    """How a metric is shown.

    Attributes:
        unit: after the name.
        at: the conditions in its heading, whether they vary or not.
        ends: at its smallest and largest conditions; else only the largest.
        beside: a metric that follows it in brackets.
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
}
# Told by the rows, the CSV and the JSON; a table to decide from is better without them.
_ELSEWHERE = ("prefill_ms_p95", "ttft_ms_p95", "decode_ms_per_token_p95", "decode_tokens_per_s", "prefill_tokens_per_s")
METRICS = frozenset([*_SHOWN, *_ELSEWHERE])


def speed_table(block: Block, measures: Sequence[Measure]) -> Table | None:
    """Make the table from measures of `METRICS`; ``None`` where there are none."""
    columns: list[Filled] = []
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
                columns.append(measured(block, measure, (name, at), beside=beside))
            rest = conditions(mine[-1].at, only={name for name, _ in mine[-1].at} - headed)
            constant.setdefault(rest, {})[shown.name] = None
    notes = [f"{', '.join(names)}: {rest}." for rest, names in constant.items() if rest]
    return table(block, "Speed", columns, [" ".join(["Medians of repeated passes.", *notes])])
