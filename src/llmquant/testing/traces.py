"""What plugins must leave unchanged, compared by the worker's own code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmquant.errors import PluginError
from llmquant.plugins.registry import registry
from llmquant.testing.trial import NotApplicable, Trial

_SHOWN = 4  # a training mode changes every layer


@contextmanager
def recorded(trial: Trial, subject: Any = None, *, loading: bool = False) -> Iterator[None]:  # Any: a loaded model
    """Restore what the block changes in the process and in the subject, and record the changes.

    Args:
        subject: the model that is evaluated; ``None`` while a model is loaded.
        loading: as for `Snapshot.undo`.
    """
    # Their imports change settings, once.
    import transformers.modeling_utils  # noqa: F401

    from llmquant.loading import causal_lm, embedder  # noqa: F401
    from llmquant.running.guard import Snapshot
    from llmquant.running.guarded_process import functions, put_back

    if not gc.get_freeze_count():
        gc.freeze()  # as in a worker: what was imported is left out of each comparison's collections
    changes: list[str] = trial.done.setdefault("changes", [])
    if trial.spec.target.partition(":")[0] not in sys.modules:
        before = functions()
        registry().construct(trial.chosen)
        changes += [f"the function {name}" for name in put_back(before, keep=loading)]
    registry().construct(trial.chosen)  # likewise
    snapshot = Snapshot.take(subject)
    try:
        yield
    finally:
        changes += [change.what for change in snapshot.undo(loading=loading)]


def refuse_changes(trial: Trial) -> None:
    """Raise a `PluginError` that names what was recorded; skip if nothing ran."""
    if "changes" not in trial.done:
        raise NotApplicable("an earlier check failed: nothing ran")
    changes = trial.done["changes"]
    if changes:
        more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise PluginError(f"it changed {' and '.join(changes[:_SHOWN])}{more}")
