"""Throughput: tokens per second at several batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from llmquant.evaluators.speed.generation_steps import Pass, measure_sizes
from llmquant.evaluators.speed.options import ThroughputOptions
from llmquant.plugins.evaluator import Evaluator
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.plugins.context import Context
    from llmquant.plugins.evaluator import LoadedModel

_TASK = "throughput"


class Throughput(Evaluator[ThroughputOptions]):
    """Counts tokens per second in static batches: prompts of equal length whose sequences start and end together.

    ``generated_tokens_per_s`` divides the generated tokens by the time of the whole generation, the prompts included,
    as is usual; ``decode_tokens_per_s`` excludes the prompts' time and the first token, and ``prefill_tokens_per_s``
    counts prompt tokens. Values are medians over repeats and have no standard error, for the reasons in `Latency`.
    """

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        """Yield one result; its details name batches that do not fit in memory."""
        options, batches = self.options, sorted(self.options.batches)
        shapes = {batch: (batch, options.prompt_tokens) for batch in batches}
        measured, problem = measure_sizes(subject, ctx, options, shapes, decode_steps=options.new_tokens - 1)
        rates = {batch: [_rates(one, batch, options) for one in passes.passes] for batch, passes in measured.items()}
        details: dict[str, Json] = {
            "by_batch": {
                str(batch): {
                    **passes.details(),
                    **{metric: [round(rate[metric], 3) for rate in rates[batch]] for metric in rates[batch][0]},
                }
                for batch, passes in measured.items()
            }
        }
        if problem:
            details["did_not_fit"] = {"batches": batches[len(measured) :], "error": problem}
        numbers = [
            Measurement(
                _TASK,
                metric,
                float(np.median([rate[metric] for rate in repeats])),
                "tokens/s",
                higher_is_better=True,
                n=len(repeats),
                at={"prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens, "batch": batch},
            )
            for batch, repeats in rates.items()
            for metric in repeats[0]
        ]
        yield Result(_TASK, numbers, details=details)


def _rates(one: Pass, batch: int, options: ThroughputOptions) -> dict[str, float]:
    """Return tokens per second by metric."""
    return {
        "generated_tokens_per_s": 1000 * batch * options.new_tokens / one.total_ms,
        "decode_tokens_per_s": 1000 * batch * len(one.decode_ms) / sum(one.decode_ms),
        "prefill_tokens_per_s": 1000 * batch * options.prompt_tokens / one.prefill_ms,
    }
