"""What perplexity and fidelity share: a text cut into windows, their batches, and one sample per window."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmquant.errors import RunError
from llmquant.evaluators.perplexity.options import PerplexityOptions, windows_of
from llmquant.evaluators.perplexity.text import read_text
from llmquant.evaluators.perplexity.windows import EncodedText, Window, encode, sliding_windows
from llmquant.evaluators.speed.generation_limits import positions
from llmquant.plugins.context import Context
from llmquant.study.call import Json
from llmquant.study.experiment import InputFile
from llmquant.study.run import Sample, numbered

if TYPE_CHECKING:
    from llmquant.plugins.evaluator import LoadedModel

Floats: TypeAlias = npt.NDArray[np.float64]

_CHARACTERS = 64  # maximum mean characters per token, so that a huge file is not encoded whole for its first tokens


@dataclass(frozen=True)
class TextWindows:
    """A text as a model reads it.

    Attributes:
        name: the text's name, which is the task's name.
        details: facts about the text and its windows, for `Result.details`.
    """

    name: str
    encoded: EncodedText
    windows: Sequence[Window]
    details: Mapping[str, Json]

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Sequence[Window], torch.Tensor]]:
        """Yield windows of equal length, so that a batch needs no padding, and their token ids, in order.

        The last `Window.scored` ids of a row are the scored tokens; the model reads a row without its last id.
        """
        for _, group in groupby(self.windows, key=lambda w: (w.end - w.begin, w.scored)):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                batch = alike[start : start + batch_size]
                ids = [[*self.encoded.lead, *self.encoded.ids[w.begin : w.end]] for w in batch]
                yield batch, torch.tensor(ids, device=device)

    def samples(self, scores: Sequence[Mapping[str, float]]) -> tuple[Sample, ...]:
        """Make one sample per window from its scores; windows with the same tokens are numbered."""
        samples = []
        for window, found in zip(self.windows, scores, strict=True):
            read = [window.scored, *self.encoded.ids[window.begin : window.end]]
            digest = hashlib.sha256(" ".join(map(str, read)).encode()).hexdigest()
            samples.append(Sample(digest, digest, found))
        return tuple(numbered(samples))


class Cut(Protocol):
    """A function that cuts a text into windows; `sliding_windows` describes the arguments."""

    def __call__(self, tokens: int, *, window: int, stride: int, lead: int) -> list[Window]:
        """Return the windows; none if the text is too short."""
        ...


def read_windows(
    options: PerplexityOptions, subject: LoadedModel, ctx: Context, cut: Cut = sliding_windows
) -> TextWindows:
    """Read the text and cut it into the model's windows.

    Raises:
        RunError: if the text is unavailable or too short.
    """
    text = read_text(options.text, ctx)
    if options.max_tokens is not None:
        text = text[: _CHARACTERS * options.max_tokens]
    encoded = encode(subject.tokenizer, text)
    tokens = min(len(encoded.ids), options.max_tokens or len(encoded.ids))
    window, stride = windows_of(options, positions(subject.info))
    windows = cut(tokens, window=window, stride=stride, lead=len(encoded.lead))
    if not windows:
        raise RunError(
            f"the text has {tokens} tokens for this model, too few for {options.evaluator} with window={window}"
        )
    details: dict[str, Json] = {
        "window": window,
        "stride": stride,
        "windows": len(windows),
        "tokens": sum(w.scored for w in windows),
        "bos": "before each window, not scored" if encoded.lead else "none; the first token is not scored",
        "text": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
    }
    name = options.text.name if isinstance(options.text, InputFile) else options.text
    return TextWindows(name, encoded, windows, details)


def ratio(totals: Floats, sizes: Floats) -> tuple[float, float | None]:
    r"""Return :math:`r = \sum t_w / \sum s_w` and its standard error; ``None`` for a single window.

    The error is that of a ratio over clusters, :math:`\sqrt{W / (W - 1) \sum (t_w - r s_w)^2} / \sum s_w`: tokens of a
    window depend on each other, and windows count as independent, which is only approximately true for neighbours.
    """
    value = float(totals.sum() / sizes.sum())
    count = len(totals)
    if count < 2 or not np.isfinite(value):
        return value, None
    residuals = totals - value * sizes
    return value, float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())
