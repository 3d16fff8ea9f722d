"""Logits of lm-eval's model: NaN is refused, and each answer of a batch ends by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from transformers import LogitsProcessor

from llmquant.errors import RunError


def refuse_nan(scores: Iterable[float]) -> None:
    """Refuse scores that are not numbers.

    Raises:
        RunError: if one is NaN.
    """
    if any(map(math.isnan, scores)):
        raise RunError(
            "the model returns NaN for some documents, whose scores would mean nothing",
            hint="float16 overflows in some models trained in bfloat16. Try bfloat16.",
        )


class Watch(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Notes whether any logit is NaN, on the model's device, so that no step waits for it."""

    def __init__(self) -> None:
        self.nan: torch.Tensor | bool = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the logits of the next token, ``(batch, vocabulary)``."""
        self.nan = scores.isnan().any() | self.nan
        return scores


class Ending(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Ends each answer of a batch by itself."""

    def __init__(self, ended: Callable[[list[int]], bool], end: int, start: int) -> None:
        self._ended, self._end, self._start = ended, end, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave only the end token to answers that have ended."""
        for row, ids in enumerate(input_ids[:, self._start :].tolist()):
            if self._ended(ids):
                scores[row] = -torch.inf
                scores[row, self._end] = 0.0
        return scores
