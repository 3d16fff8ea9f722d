r"""The perplexity evaluator: how well a model predicts a text.

For scored tokens :math:`x_1 \dots x_T` of windows :math:`w`, each after the context :math:`c(t)` of its window:

.. math::
    \mathrm{NLL}_w = -\sum_{t \in w} \ln p(x_t \mid c(t)), \qquad
    \mathrm{PPL} = \exp \frac{\sum_w \mathrm{NLL}_w}{T}
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from llmquant.errors import RunError
from llmquant.evaluators.perplexity.options import PerplexityOptions
from llmquant.evaluators.perplexity.reading import Floats, TextWindows, ratio, read_windows
from llmquant.evaluators.perplexity.text import read_text
from llmquant.evaluators.perplexity.windows import EncodedText, Window
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator, LoadedModel
from llmquant.study.run import Measurement, Result

_ROWS = 256  # logits in float32 at a time: 128 MiB for a vocabulary of 128,000


class Perplexity(Evaluator[PerplexityOptions]):
    """Score a text token by token.

    Args:
        options: the text, its length, and the windows.
    """

    def fetch(self, ctx: Context) -> None:
        """Read the text.

        Raises:
            RunError: if the text is unavailable.
        """
        read_text(self.options.text, ctx)

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterator[Result]:
        """Yield perplexity, bits per byte and nats per token, with one sample per window.

        Raises:
            RunError: if the text is unavailable or too short, or the model returns NaN.
        """
        text = read_windows(self.options, subject, ctx)
        sums: list[float] = []
        for batch, ids in text.batches(self.options.batch_size, subject.module.device):
            sums += _nll(subject.module, ids, batch[0].scored)
            ctx.progress(len(sums), len(text.windows))
        nll = np.array(sums)
        if np.isnan(nll).any():
            raise RunError(f"the model returns NaN in {int(np.isnan(nll).sum())} of {len(nll)} windows")
        scores = [_scores(window, total, text.encoded) for window, total in zip(text.windows, sums, strict=True)]
        yield Result(text.name, _measurements(text, nll), text.samples(scores), text.details)


def _nll(module: Any, ids: torch.Tensor, scored: int) -> list[float]:  # Any: transformers has no types
    """Sum per row of `ids` the negative log-likelihood of its last `scored` tokens."""
    keep = {"logits_to_keep": scored} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}
    with torch.no_grad():
        logits = module(input_ids=ids[:, :-1], use_cache=False, **keep).logits[:, -scored:]
    sums = []
    for row, targets in zip(logits, ids[:, -scored:], strict=True):
        parts = zip(row.split(_ROWS), targets.split(_ROWS), strict=True)
        losses = [cross_entropy(part.float(), target, reduction="none").double().sum() for part, target in parts]
        sums.append(float(torch.stack(losses).sum()))
    return sums


def _measurements(text: TextWindows, nll: Floats) -> tuple[Measurement, ...]:
    per_token, stderr = ratio(nll, np.array([w.scored for w in text.windows], dtype=float))
    value = float(np.exp(per_token))  # infinite where Python's exp would raise
    found = [
        # By the delta method: d exp(x) = exp(x) dx.
        ("perplexity", value, None if stderr is None else value * stderr, ""),
        ("nll_per_token", per_token, stderr, "nats"),
    ]
    if text.encoded.bytes_before is not None:
        sizes = np.array([_bytes(w, text.encoded) for w in text.windows], dtype=float)
        found.append(("bits_per_byte", *ratio(nll / math.log(2), sizes), "bits"))
    return tuple(
        Measurement(text.name, metric, number, unit, higher_is_better=False, stderr=error, n=len(nll))
        for metric, number, error, unit in found
    )


def _scores(window: Window, nll: float, encoded: EncodedText) -> dict[str, float]:
    """Return a window's nats, tokens and bytes, which add up to every measurement."""
    scores = {"nll": nll, "tokens": float(window.scored)}
    if encoded.bytes_before is not None:
        scores["bytes"] = float(_bytes(window, encoded))
    return scores


def _bytes(window: Window, encoded: EncodedText) -> int:
    before = encoded.bytes_before or ()
    return before[window.end] - before[window.first]
