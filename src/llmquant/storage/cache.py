"""A cache of checkpoints, indexes and digests; entries are made once, atomically, under a lock, and verified."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import OptionError, StoreError
from llmquant.storage.atomic import (
    beside,
    file_mode,
    make_folder,
    nearest_folder,
    own_folder,
    replacing,
    seal_folder,
    write_text,
)
from llmquant.storage.holders import Waiting, held
from llmquant.study.call import Json
from llmquant.study.experiment import hex_digest, path_of
from llmquant.study.folders import file_sha256, list_files

if TYPE_CHECKING:
    from filelock import BaseFileLock

_log = logging.getLogger(__name__)

# In each entry: the digests of its other files, and data of its maker.
MANIFEST = "llmquant.json"
_NAME = "[0-9a-f]{32}"
# The open manifests of the entries that this process got, locked.
_KEPT: dict[Path, int] = {}


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        kind: kind such as ``gguf`` or ``tasks``.
        name: what it was made from, for people, for example a model's name; ``""`` if unknown.
        bytes: size on disk in bytes.
        used_at: time of the last use, in seconds since the epoch.
    """

    kind: str
    name: str
    path: Path
    bytes: int
    used_at: float


class Cache:
    """A folder of entries, ``<kind>/<digest of the key>``.

    Args:
        root: the folder; created with the first entry.
        who: what this process makes entries for, for others that wait for an entry.
        waiting: called with the holders of an entry during a wait; by default they are logged.
    """

    def __init__(self, root: Path, *, who: str = "llmquant", waiting: Waiting | None = None) -> None:
        self.root, self._who = root, who
        self._waiting = waiting or (lambda holders: _log.warning("waiting for %s", holders))

    @classmethod
    def default(cls) -> Cache:
        """Return the user's cache: ``$LLMQUANT_CACHE``, else the platform's cache folder.

        For a user without a writable home folder, as in many containers, the cache is in the temporary folder.

        Raises:
            StoreError: if that folder belongs to another user.
        """
        import platformdirs

        if named := os.environ.get("LLMQUANT_CACHE"):
            return cls(path_of(named))
        with contextlib.suppress(RuntimeError):  # platformdirs finds no home folder; older versions return "~/.cache"
            root = Path(platformdirs.user_cache_dir("llmquant"))
            if root.is_absolute() and os.access(nearest_folder(root), os.W_OK):
                return cls(root)
        return cls(_temporary() / "cache")

    @property
    def digests(self) -> Path:
        """Return the path of the remembered digests of large files."""
        return self.root / "digests"

    def forget_digests(self) -> None:
        """Read every file's content again, even if its size and times are unchanged."""
        for record in self.digests.glob("*.json"):
            record.unlink(missing_ok=True)

    def host_lock(self) -> Path:
        """Return the lock file with which studies reserve or share this machine.

        The file is in a folder that only this user can write, and is named by the machine, because several machines may
        share the cache's disk.

        Raises:
            StoreError: if no such folder can be made.
        """
        boot = Path("/proc/sys/kernel/random/boot_id")  # containers on one machine have the same id
        host = boot.read_text(encoding="ascii") if boot.exists() else platform.node()
        name = hex_digest([host, str(self.root.resolve())])[:12]
        try:
            folder = own_folder(self.root / f".locks-{os.getuid()}")
            with (folder / "probe").open("a+") as probe:
                fcntl.lockf(probe, fcntl.LOCK_SH)
        except OSError:  # a cache that cannot be written here, or a network disk without locks
            folder = _temporary()
        return folder / f"host-{name}.lock"

    def get(self, kind: str, key: Json, make: Callable[[Path], None], *, name: str = "") -> Path:
        """Return the folder for `key`, made by ``make(empty folder)`` if it is missing.

        A second process waits, and says for whom; a maker that raises or is killed leaves no entry. An existing entry
        is read and compared with its manifest; an entry without a manifest is from an older version, and is made again.

        Args:
            name: what it is made from, for `entries`.

        Raises:
            StoreError: if an entry has changed since it was made.
        """
        final = self.root / kind / hex_digest(key)[:32]
        if (final / MANIFEST).is_file():
            _verify(final)
        else:
            make_folder(final.parent)
            lock = _lock(final)
            with held(Path(lock.lock_file), self._who, lock.acquire, lock.release, self._waiting):
                if not (final / MANIFEST).is_file():
                    if final.exists():
                        final.replace(beside(final))
                    _sweep(final)
                    with replacing(final) as partial:
                        make(make_folder(partial))
                        _write_manifest(partial, name)
                        seal_folder(partial)
        with contextlib.suppress(OSError):  # a cache shared read-only is still a cache
            os.utime(final)
        with contextlib.suppress(OSError):  # a disk without locks
            _keep(final)
        return final

    def entries(self) -> list[CacheEntry]:
        """List the entries, the longest unused first."""
        found = []
        for path in self.root.glob("*/*"):
            if path.is_dir() and re.fullmatch(_NAME, path.name):
                found.append(CacheEntry(path.parent.name, _name(path), path, _size(path), path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used_at)

    def prune(self, *, unused_days: float) -> list[CacheEntry]:
        """Delete entries not used in the last `unused_days`, and partial entries of killed makers.

        An entry that another running process got is kept, with a warning.

        Returns:
            The entries that were deleted.

        Raises:
            OptionError: if `unused_days` is below 0.
        """
        from filelock import Timeout

        if unused_days < 0:
            raise OptionError(f"unused days must be at least 0, found {unused_days:g}", hint="0 deletes all entries.")
        now = time.time()  # an entry of the future was used before the clock was set back
        while _KEPT:
            os.close(_KEPT.popitem()[1])
        old = [entry for entry in self.entries() if max(0, now - entry.used_at) >= unused_days * 86400]
        old = [entry for entry in old if not _in_use(entry.path)]
        for entry in old:
            with _lock(entry.path):
                # Renamed first, so that no process finds a partial entry.
                entry.path.replace(beside(entry.path))
                _sweep(entry.path)
        for left in self.root.glob("*/.*.*"):
            match = re.fullmatch(rf"\.({_NAME})\.[0-9a-f]{{8}}", left.name)
            if match and left.is_dir():
                final = left.with_name(match[1])
                with contextlib.suppress(Timeout), _lock(final, timeout_s=0):  # held: its maker is at work
                    _sweep(final)
        return old


def _keep(final: Path) -> None:
    """Keep an entry from being pruned while this process runs."""
    if final not in _KEPT:
        _KEPT[final] = os.open(final / MANIFEST, os.O_RDONLY)
        fcntl.flock(_KEPT[final], fcntl.LOCK_SH | fcntl.LOCK_NB)


def _in_use(final: Path) -> bool:
    try:
        with (final / MANIFEST).open() as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("%s is kept, as a running program uses it", final)
        return True
    except OSError:  # no manifest, or a disk without locks
        return False
    return False


def _digests(folder: Path) -> dict[str, str]:
    """Digest the files of an entry, several at a time; for a link, only its target path."""

    def digest(file: Path) -> str:
        return f"link:{file.readlink()}" if file.is_symlink() else f"sha256:{file_sha256(file)}"

    files = list_files(folder)
    files.pop(MANIFEST, None)
    with ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))


def _write_manifest(folder: Path, name: str) -> None:
    path = folder / MANIFEST
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_text(path, json.dumps({"name": name, **said, "files": _digests(folder)}, indent=2) + "\n")


def _name(folder: Path) -> str:
    try:
        name = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):  # made by an older version, or damaged
        return ""
    return name if isinstance(name, str) else ""


def _verify(folder: Path) -> None:
    """Refuse an entry that changed after it was made."""
    delete = f"Delete it, and it is made again: {folder}"
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        found = _digests(folder)
    except (OptionError, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} in the cache cannot be read: {error}", hint=delete) from error
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            is_now, was = found.get(name, "no file"), expected.get(name, "no file")
            raise StoreError(f"{folder / name} in the cache is not what was made: {is_now}, not {was}", hint=delete)


def _temporary() -> Path:
    """Return this user's own folder among the temporary files, independent of ``TMPDIR``."""
    try:
        return own_folder(Path("/tmp", f"llmquant-{os.getuid()}"))
    except OSError as error:
        raise StoreError(
            f"neither the cache nor {error.filename} can be used: {error.strerror}",
            hint="Set LLMQUANT_CACHE to a folder that only this user can write.",
        ) from error


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # embeddings may be merged meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


def _lock(final: Path, *, timeout_s: float = -1) -> BaseFileLock:
    from filelock import FileLock

    path = final.with_name(f"{final.name}.lock")
    path.touch(file_mode())
    return FileLock(path, timeout=timeout_s)


def _sweep(final: Path) -> None:
    """Delete partial folders of `final`; because its lock is held, their makers are dead."""
    for left in final.parent.glob(f".{final.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
