"""Load checkpoints strictly: refuse one that was not loaded whole, and one that holds more than was loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llmquant.errors import ModelError
from llmquant.loading import check_complete

# A language model's output layer: it gives no vectors, so a model opened without it lacks nothing.
HEAD = r"(.*\.)?lm_head\.(weight|bias)"


def load_strict(
    cls: Any,  # Any: a class of transformers, or one that is made like them
    path: Path,
    source: str,
    keywords: Mapping[str, Any],  # Any: from_pretrained's
    *,
    allowed: Iterable[str] = (),
    allow_pickle: bool = False,
) -> Any:  # Any: a model of that class
    """Load a checkpoint by ``from_pretrained``, in evaluation mode.

    Args:
        source: how messages call the checkpoint.
        allowed: as `check_strict`.
        allow_pickle: read weights in pickle files too.

    Raises:
        ModelError: if it cannot be loaded, or as `check_strict`.
    """
    try:
        model, report = cls.from_pretrained(
            path,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them; `check_strict` ignores none
            **keywords,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{cls.__name__} cannot load {source}: {error}") from error
    check_strict(report, source, allowed=allowed)
    return model.eval()


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


__all__ = ["HEAD", "check_strict", "load_strict"]
