"""A worker's standard output, which is the job's log: kept and given back around foreign code, and read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmquant.storage.journal import log_path, read_log

_OUTPUT = {1: "stdout", 2: "stderr"}


def keep_output() -> list[int]:
    """Copy the descriptors, for `give_back`."""
    return [os.dup(number) for number in _OUTPUT]


def give_back(output: Sequence[int]) -> None:
    """Reopen standard output and error: the next open file would get a closed one's number, and with it the log."""
    for (number, name), copy in zip(_OUTPUT.items(), output, strict=True):
        with contextlib.suppress(OSError):  # the copy was closed too
            os.dup2(copy, number)
            os.close(copy)
        if getattr(sys, name) is None or getattr(sys, name).closed:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def flush_output() -> None:
    """Write out what is still held back."""
    for name in _OUTPUT.values():
        with contextlib.suppress(Exception):  # an evaluator may have closed or replaced the stream
            getattr(sys, name).flush()


def log_size(record: Path) -> int:
    """Return how many bytes the job has logged."""
    flush_output()
    path = log_path(record)
    return path.stat().st_size if path.exists() else 0


def log_since(record: Path, offset: int) -> str:
    """Read what the job has logged from an offset on."""
    flush_output()
    return read_log(record, offset)
