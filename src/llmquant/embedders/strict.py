"""Refuse a checkpoint that was not loaded whole, and one that holds more than was loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmquant.errors import ModelError
from llmquant.loading import check_complete

# A language model's output layer: it gives no vectors, so a model opened without it lacks nothing.
HEAD = r"(.*\.)?lm_head\.(weight|bias)"


def check_strict(report: Mapping[str, Any], source: str, *, allowed: Iterable[str] = ()) -> None:  # Any: transformers'
    """Compare what a checkpoint holds with what the model took from it.

    A tensor under a name that the model does not know is as bad as a missing one: its layer holds random numbers, or
    the vectors are those of another model than the one that was released.

    Args:
        report: what ``from_pretrained(..., output_loading_info=True)`` returns beside the model.
        source: how messages call the checkpoint.
        allowed: regular expressions; tensors that match one in full may be left in the file.

    Raises:
        ModelError: for missing and unexpected tensors, for wrong shapes, and for errors that were only noted; each with
            how many there are and the first of them.
    """
    check_complete(report, source)
    patterns = tuple(allowed)
    names = sorted(report.get("unexpected_keys") or ())
    unexpected = [name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    if unexpected:
        raise ModelError(
            f"{source} holds {len(unexpected)} weights that its model has no place for, first {unexpected[0]!r}",
            hint="It was made for another class of model. Nothing was loaded, because they would be ignored.",
        )


__all__ = ["HEAD", "check_strict"]
