"""What can be made again: checkpoints, indexes, digests. Made once, atomically, under a lock."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.call import Json
from llmquant.experiment import digest_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NAME = "[0-9a-f]{32}"


@dataclass(frozen=True)
class CacheEntry:
    """One made thing.

    Attributes:
        kind: such as ``gguf`` or ``tasks``.
        bytes: its size on disk.
        used_at: when it was last asked for, seconds since the epoch.
    """

    kind: str
    path: Path
    bytes: int
    used_at: float


class Cache:
    """A plain folder of made things, ``<kind>/<digest of the key>``.

    Args:
        root: the folder; it is made when something is put in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> Cache:
        """Return the user's cache: ``$LLMQUANT_CACHE``, else the platform's cache folder."""
        import platformdirs

        return cls(Path(os.environ.get("LLMQUANT_CACHE") or platformdirs.user_cache_dir("llmquant")))

    def get(self, kind: str, key: Json, make: Callable[[Path], None]) -> Path:
        """Return the folder for `key`, made by ``make(empty folder)`` if it is not there.

        Whoever comes second waits; a maker that raises or is killed leaves nothing that counts.
        """
        final = self.root / kind / digest_of(key).removeprefix("sha256:")[:32]
        if not final.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            with _lock(final):
                if not final.is_dir():
                    _sweep(final)
                    partial = _beside(final)
                    partial.mkdir()
                    try:
                        make(partial)
                        partial.replace(final)
                    finally:
                        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # a cache shared read-only is still a cache
            os.utime(final)
        return final

    def entries(self) -> list[CacheEntry]:
        """List what is there, the longest unused first."""
        found = []
        for path in self.root.glob("*/*"):
            if path.is_dir() and re.fullmatch(_NAME, path.name):
                found.append(CacheEntry(path.parent.name, path, _size(path), path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used_at)

    def prune(self, *, unused_days: float) -> list[CacheEntry]:
        """Delete what was not asked for in the last `unused_days`, and what killed makers left.

        Returns:
            The entries that were deleted.
        """
        from filelock import Timeout

        old = [entry for entry in self.entries() if time.time() - entry.used_at > unused_days * 86400]
        for entry in old:
            with _lock(entry.path):
                # Renamed first: nobody finds half of it.
                entry.path.replace(_beside(entry.path))
                _sweep(entry.path)
        for left in self.root.glob("*/.*.*"):
            match = re.fullmatch(rf"\.({_NAME})\.[0-9a-f]{{8}}", left.name)
            if match and left.is_dir():
                final = left.with_name(match[1])
                with contextlib.suppress(Timeout), _lock(final, timeout_s=0):  # held: its maker is at work
                    _sweep(final)
        return old


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # embeddings are merged while somebody looks
            total += file.stat().st_size if file.is_file() else 0
    return total


def _lock(final: Path, *, timeout_s: float = -1) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(f"{final}.lock", timeout=timeout_s)


def _beside(final: Path) -> Path:
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")


def _sweep(final: Path) -> None:
    """Delete what makers of `final` left; under its lock all of them are dead."""
    for left in final.parent.glob(f".{final.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
