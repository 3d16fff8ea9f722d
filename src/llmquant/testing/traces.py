"""What plugins must leave unchanged, compared by the worker's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmquant.errors import PluginError


@contextmanager
def no_trace(subject: Any = None) -> Iterator[None]:  # Any: a LoadedModel or LoadedEmbedder
    """Restore what the block changed in the process and in the subject.

    Raises:
        PluginError: naming every change.
    """
    from llmquant.running.guard import Snapshot

    before = Snapshot.take(subject)
    try:
        yield
    finally:
        changes = [change.what for change in before.undo()]
    if changes:
        raise PluginError(f"it changed {' and '.join(changes)}")
