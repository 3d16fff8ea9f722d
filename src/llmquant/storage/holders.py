"""Who holds a lock: each holder writes its purpose next to the lock file, for processes that wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from filelock import Timeout

Waiting = Callable[[str], None]


@contextlib.contextmanager
def held(
    lock: Path, who: str, acquire: Callable[[float], object], release: Callable[[], object], waiting: Waiting
) -> Iterator[None]:
    """Hold a lock.

    Args:
        lock: path of the lock file.
        who: what it is held for, for others that wait.
        acquire: acquires the lock, or raises filelock's `Timeout` after the given number of seconds.
        waiting: called during a wait with the holders of the lock.
    """
    patience_s = 1.0
    while True:
        try:
            acquire(patience_s)
            break
        except Timeout:
            waiting(_holders(lock))
            patience_s = 30.0  # seldom: between two attempts, others may overtake
    for file, alive in _named(lock):
        if not alive:  # left by a process that was killed
            with contextlib.suppress(OSError):  # another user's
                file.unlink(missing_ok=True)
    holder = lock.with_suffix(f".{os.getpid()}")
    try:
        with contextlib.suppress(OSError):  # a full disk: only the name is missing
            holder.write_text(who, encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        release()


def _holders(lock: Path) -> str:
    found = []
    for file, alive in _named(lock):
        with contextlib.suppress(OSError):  # released meanwhile, or another user's
            if alive:
                found.append(f"pid {file.suffix[1:]} ({file.read_text(encoding='utf-8')})")
    return ", ".join(found) or "another process"


def _named(lock: Path) -> list[tuple[Path, bool]]:
    """List the files in which holders wrote their purpose, and whether their processes are alive."""
    files = [file for file in sorted(lock.parent.glob(f"{lock.stem}.*")) if file.suffix[1:].isdecimal()]
    return [(file, psutil.pid_exists(int(file.suffix[1:]))) for file in files]
