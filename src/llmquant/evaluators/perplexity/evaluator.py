r"""The perplexity evaluator: how well a model predicts a text.

For scored tokens :math:`x_1 \dots x_T` of windows :math:`w`, each after the context :math:`c(t)` of its window:

.. math::
    \mathrm{NLL}_w = -\sum_{t \in w} \ln p(x_t \mid c(t)), \qquad
    \mathrm{PPL} = \exp \frac{\sum_w \mathrm{NLL}_w}{T}
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from llmquant.errors import RunError
from llmquant.evaluators.perplexity.options import PerplexityOptions, windows_of
from llmquant.evaluators.perplexity.text import read_text
from llmquant.evaluators.perplexity.windows import EncodedText, Window, encode, sliding_windows
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator, LoadedModel
from llmquant.study.call import Json
from llmquant.study.experiment import InputFile
from llmquant.study.run import Measurement, Result, Sample

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

_Floats: TypeAlias = npt.NDArray[np.float64]

_ROWS = 256  # logits in float32 at a time: 128 MiB for a vocabulary of 128,000
_CHARACTERS = 64  # maximum mean characters per token, so that a huge file is not encoded whole for its first tokens
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


class Perplexity(Evaluator[PerplexityOptions]):
    """Score a text token by token.

    Args:
        options: the text, its length, and the windows.
    """

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterator[Result]:
        """Yield perplexity, bits per byte and nats per token, with one sample per window.

        Raises:
            RunError: if the text is unavailable or too short, or the model returns NaN.
        """
        options = self.options
        text = read_text(options.text, ctx)
        if options.max_tokens is not None:
            text = text[: _CHARACTERS * options.max_tokens]
        encoded = encode(subject.tokenizer, text)
        tokens = min(len(encoded.ids), options.max_tokens or len(encoded.ids))
        window, stride = windows_of(options, _positions(subject.info))
        windows = sliding_windows(tokens, window=window, stride=stride, lead=0 if encoded.bos is None else 1)
        if not windows:
            raise RunError(f"the text has {tokens} tokens for this model, but perplexity needs two")
        nll = _score(subject, encoded, windows, options.batch_size, ctx)
        if np.isnan(nll).any():
            raise RunError(f"the model returns NaN in {int(np.isnan(nll).sum())} of {len(windows)} windows")
        name = options.text.name if isinstance(options.text, InputFile) else options.text
        details: dict[str, Json] = {
            "window": window,
            "stride": stride,
            "windows": len(windows),
            "tokens": sum(w.scored for w in windows),
            "bos": "none; the first token is not scored" if encoded.bos is None else "before each window, not scored",
            "text": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        }
        yield Result(name, _measurements(name, windows, nll, encoded), _samples(windows, nll, encoded), details)


def _score(
    subject: LoadedModel, encoded: EncodedText, windows: Sequence[Window], batch_size: int, ctx: Context
) -> _Floats:
    """Return each window's negative log-likelihood in nats."""
    lead = [] if encoded.bos is None else [encoded.bos]
    sums: list[float] = []
    for _, group in groupby(windows, key=lambda w: (w.end - w.begin, w.scored)):
        alike = list(group)  # windows of one length, so batches need no padding
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            ids = torch.tensor([[*lead, *encoded.ids[w.begin : w.end]] for w in batch], device=subject.module.device)
            sums += _nll(subject.module, ids, batch[0].scored)
            ctx.progress(len(sums), len(windows))
    return np.array(sums)


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


def _measurements(task: str, windows: Sequence[Window], nll: _Floats, encoded: EncodedText) -> tuple[Measurement, ...]:
    tokens = np.array([w.scored for w in windows], dtype=float)
    per_token, stderr = _ratio(nll, tokens)
    value = float(np.exp(per_token))  # infinite where Python's exp would raise
    found = [
        # By the delta method: d exp(x) = exp(x) dx.
        ("perplexity", value, None if stderr is None else value * stderr, ""),
        ("nll_per_token", per_token, stderr, "nats"),
    ]
    if encoded.bytes_before is not None:
        bits, bits_stderr = _ratio(nll / math.log(2), np.array([_bytes(w, encoded) for w in windows], dtype=float))
        found.append(("bits_per_byte", bits, bits_stderr, "bits"))
    return tuple(
        Measurement(task, metric, number, unit, higher_is_better=False, stderr=error, n=len(windows))
        for metric, number, error, unit in found
    )


def _ratio(totals: _Floats, sizes: _Floats) -> tuple[float, float | None]:
    r"""Return :math:`r = \sum t_w / \sum s_w` and its standard error; ``None`` for a single window.

    The error is that of a ratio over clusters, :math:`\sqrt{W / (W - 1) \sum (t_w - r s_w)^2} / \sum s_w`: tokens of a
    window depend on each other, and windows count as independent, which is only approximately true for neighbours.
    """
    ratio = float(totals.sum() / sizes.sum())
    count = len(totals)
    if count < 2 or not math.isfinite(ratio):
        return ratio, None
    residuals = totals - ratio * sizes
    return ratio, float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())


def _samples(windows: Sequence[Window], nll: _Floats, encoded: EncodedText) -> tuple[Sample, ...]:
    """Make one sample per window: its nats, tokens and bytes, which add up to every measurement."""
    samples = []
    seen: Counter[str] = Counter()
    for window, total in zip(windows, nll, strict=True):
        read = [window.scored, *encoded.ids[window.begin : window.end]]
        digest = hashlib.sha256(" ".join(map(str, read)).encode()).hexdigest()
        scores = {"nll": float(total), "tokens": float(window.scored)}
        if encoded.bytes_before is not None:
            scores["bytes"] = float(_bytes(window, encoded))
        samples.append(Sample(digest, digest, scores, occurrence=seen[digest]))
        seen[digest] += 1
    return tuple(samples)


def _bytes(window: Window, encoded: EncodedText) -> int:
    before = encoded.bytes_before or ()
    return before[window.end] - before[window.first]


def _positions(model: ModelInfo) -> int | None:
    """Return the longest sequence that a model declares; ``None`` if it declares none."""
    return next((model.text_config[key] for key in _POSITIONS if isinstance(model.text_config.get(key), int)), None)


__all__ = ["Perplexity"]
