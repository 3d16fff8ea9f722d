"""Latency: the time to read a prompt and the time to generate a token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmquant.evaluators.speed.generation_steps import Passes, measure_sizes
from llmquant.evaluators.speed.options import LatencyOptions
from llmquant.plugins.evaluator import Evaluator
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.plugins.context import Context
    from llmquant.plugins.evaluator import LoadedModel

_TASK = "latency"
_STEPS_FILE = "latency_steps.json"


class Latency(Evaluator[LatencyOptions]):
    """Times prefill, the first token and each further token, at several prompt lengths.

    Medians have no standard error: repeats inside one process are not independent of each other, unlike readings of
    another process or another day. The details hold the quartiles and every repeat, and ``files/latency_steps.json``
    holds every step; intervals need repeated runs.
    """

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        """Yield one result; its details name prompt lengths that do not fit in memory."""
        options, lengths = self.options, sorted(self.options.prompt_tokens)
        shapes = {length: (options.batch, length) for length in lengths}
        measured, problem = measure_sizes(subject, ctx, options, shapes, decode_steps=options.decode_tokens)
        steps = {
            str(length): [[round(ms, 4) for ms in one.decode_ms] for one in passes.passes]
            for length, passes in measured.items()
        }
        ctx.files.mkdir(parents=True, exist_ok=True)
        (ctx.files / _STEPS_FILE).write_text(json.dumps({"decode_ms": steps}), encoding="utf-8")
        details: dict[str, Json] = {
            "by_prompt_tokens": {str(length): _details(passes) for length, passes in measured.items()},
            "steps_file": _STEPS_FILE,
        }
        if problem:
            details["did_not_fit"] = {"prompt_tokens": lengths[len(measured) :], "error": problem}
        numbers = [
            number for length, passes in measured.items() for number in _measurements(passes, length, options.batch)
        ]
        yield Result(_TASK, numbers, details=details)


def _measurements(passes: Passes, length: int, batch: int) -> list[Measurement]:
    series = {
        "prefill_ms": [one.prefill_ms for one in passes.passes],
        "ttft_ms": [one.ttft_ms for one in passes.passes],
        "decode_ms_per_token": [ms for one in passes.passes for ms in one.decode_ms],
    }
    at = {"prompt_tokens": length, "batch": batch}
    return [
        Measurement(_TASK, metric + suffix, _percentile(values, q), "ms", higher_is_better=False, n=len(values), at=at)
        for metric, values in series.items()
        for suffix, q in (("", 50), ("_p95", 95))
    ]


def _details(passes: Passes) -> dict[str, Json]:
    decode = [ms for one in passes.passes for ms in one.decode_ms]
    prefill = [one.prefill_ms for one in passes.passes]
    return {
        **passes.details(),
        "prefill_ms": [round(ms, 4) for ms in prefill],
        "ttft_ms": [round(one.ttft_ms, 4) for one in passes.passes],
        "decode_ms_per_token_median": [round(_percentile(one.decode_ms, 50), 4) for one in passes.passes],
        "prefill_ms_quartiles": [_percentile(prefill, 25), _percentile(prefill, 75)],
        "decode_ms_per_token_quartiles": [_percentile(decode, 25), _percentile(decode, 75)],
    }


def _percentile(values: Sequence[float], q: int) -> float:
    return float(np.percentile(values, q))
