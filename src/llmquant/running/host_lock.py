"""The lock of the machine: hardware experiments run alone, other experiments share it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from llmquant.storage.cache import Cache
from llmquant.storage.holders import Waiting, held


def host_lock(
    cache: Cache, *, exclusive: bool, who: str = "", waiting: Waiting = lambda holders: None
) -> AbstractContextManager[None]:
    """Lock the machine.

    Args:
        who: what the machine is locked for, for others that wait.
        waiting: called during a wait with the holders of the lock.
    """
    from filelock import ReadWriteLock

    path = cache.host_lock()
    lock = ReadWriteLock(path)
    return held(path, who, lock.acquire_write if exclusive else lock.acquire_read, lock.release, waiting)
