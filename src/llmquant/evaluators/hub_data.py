"""Data sets of the Hub, as evaluators read them: what failed, and a log without progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_FETCHING = ("datasets", "huggingface_hub", "requests")


def not_fetched(error: Exception) -> bool:
    """Return whether rows could not be fetched or read, rather than that a task's own code failed."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's, by version

    return isinstance(error, OSError | HTTPError) or type(error).__module__.split(".")[0] in _FETCHING


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of the worker's log, which is a file."""
    import datasets

    silent = datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.utils.enable_progress_bars()
