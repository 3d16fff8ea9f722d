"""The lock of the machine: hardware experiments run alone, other experiments share it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from llmquant.storage.cache import Cache


@contextlib.contextmanager
def host_lock(
    cache: Cache, *, exclusive: bool, who: str = "", waiting: Callable[[str], None] = lambda holders: None
) -> Iterator[None]:
    """Lock the machine.

    Args:
        who: what the machine is locked for, for others that wait.
        waiting: called during a wait with the holders of the lock.
    """
    from filelock import ReadWriteLock, Timeout

    path, patience_s = cache.host_lock(), 1.0
    lock = ReadWriteLock(path)
    acquire = lock.acquire_write if exclusive else lock.acquire_read
    while True:
        try:
            acquire(patience_s)
            break
        except Timeout:
            waiting(_holders(path))
            patience_s = 30.0  # seldom: between two attempts, others may overtake
    holder = path.with_suffix(f".{os.getpid()}")
    try:
        with contextlib.suppress(OSError):  # a full disk: only the name is missing
            holder.write_text(who, encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holders(lock: Path) -> str:
    import psutil

    found = []
    for file in sorted(lock.parent.glob(f"{lock.stem}.*")):
        pid = file.suffix.removeprefix(".")
        with contextlib.suppress(FileNotFoundError):  # released meanwhile
            if pid.isdecimal() and psutil.pid_exists(int(pid)):
                found.append(f"pid {pid} ({file.read_text(encoding='utf-8')})")
    return ", ".join(found) or "another process"
