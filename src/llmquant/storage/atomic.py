"""Atomic writing: files are private to this user, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

SHARED_VARIABLE = "LLMQUANT_SHARED"
_PARTIAL = ".partial-"
_ABANDONED_S = 7 * 86400.0
# File systems allow names of 255 bytes, suffixes included.
_NAME_BYTES = 180


def is_shared() -> bool:
    """Return whether stores and caches follow the umask instead of being private to this user."""
    return os.environ.get(SHARED_VARIABLE, "") not in ("", "0")


def file_mode() -> int:
    """Return the mode to create a file with."""
    return 0o666 if is_shared() else 0o600


def folder_mode() -> int:
    """Return the mode to create a folder with."""
    return 0o777 if is_shared() else 0o700


def file_name(text: str) -> str:
    """Return a name for a file that belongs to `text`: no other text has it, and every disk takes its length."""
    name = quote(text, safe="")
    return name if len(name) <= _NAME_BYTES else f"{name[:_NAME_BYTES]}~{sha256(text.encode()).hexdigest()[:16]}"


def make_folder(path: Path) -> Path:
    """Make a folder and those above it that are missing, and return it; one that is there keeps its mode."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(folder_mode(), exist_ok=True)
    return path


def nearest_folder(path: Path) -> Path:
    """Return a folder, or its nearest existing parent."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def own_folder(path: Path) -> Path:
    """Make a folder that is this user's alone, shared or not, and return it.

    Raises:
        OSError: if it cannot be made, or what is there is another user's, a link, or open to others.
    """
    with contextlib.suppress(FileExistsError):
        make_folder(path.parent)
        path.mkdir(0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a folder of this user alone", str(path))
    return path


def beside(final: Path) -> Path:
    """Return a new hidden name next to `final`."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Give a name to write a file or a folder under: it becomes `final` in one step, or is deleted if that fails."""
    partial = beside(final)
    try:
        yield partial
        partial.replace(final)  # an empty folder may be there
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    r"""Write a file next to its final path, flush it and rename it.

    A lone surrogate, which UTF-8 cannot hold, becomes ``\udc80``; in JSON that reads back as what it was.
    """
    with replacing(path) as partial:
        partial.touch(file_mode(), exist_ok=False)
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    _flush(path.parent)


def begin_folder(beside: Path) -> tuple[Path, int]:
    """Make an empty folder to write into.

    Returns:
        The folder, and a descriptor that keeps `sweep` from it until it is closed, by us or by our death.
    """
    while True:
        partial = make_folder(beside) / f"{_PARTIAL}{uuid.uuid4().hex}"
        partial.mkdir(folder_mode())
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a network disk without such locks: there `sweep` goes by age
                fcntl.flock(held, fcntl.LOCK_EX)
            if partial.exists():
                return partial, held
            os.close(held)


def publish_folder(partial: Path, final: Path, last: str, text: str) -> None:
    """Flush a folder and all that is in it, write its file `last`, and rename the folder.

    Raises:
        OSError: if the disk is full, or another one is there already.
    """
    seal_folder(partial)
    write_text(partial / last, text)
    partial.rename(final)
    _flush(final.parent)


def seal_folder(folder: Path) -> None:
    """Flush a folder and all that is in it to the disk, and take it from other users unless it is shared."""
    for place, _, files in os.walk(folder, topdown=False):
        for path in (*(Path(place, name) for name in files), Path(place)):
            if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                if not is_shared():
                    with contextlib.suppress(OSError):  # a disk that keeps no modes
                        path.chmod(path.stat().st_mode & 0o700)
                _flush(path)


def sweep(folder: Path) -> None:
    """Delete what writers left when they died: at once where folders can be locked, else after a week."""
    for left in folder.glob(f"{_PARTIAL}*"):
        try:
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # deleted meanwhile, or not made by a writer
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = True
        except BlockingIOError:
            dead = False
        except OSError:
            dead = time.time() - os.fstat(held).st_mtime > _ABANDONED_S
        if dead:
            shutil.rmtree(left, ignore_errors=True)
        os.close(held)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a disk that cannot flush folders
            raise
    finally:
        os.close(opened)
