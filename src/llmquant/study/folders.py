"""A folder as input: its files and their names, and the digest of a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from llmquant.errors import OptionError

_HIDE = "Repair or delete it, or rename it with a leading dot: hidden files and folders are ignored."


def list_files(folder: Path, subfolders: Sequence[str] = ("*",)) -> dict[str, Path]:
    """List the files of a folder; the digest, the use and copies of a folder follow this list.

    Hidden files and folders are ignored. Links are followed. Names have ``/`` between folders and are in
    Unicode's composed form, which file systems of macOS do not keep. They are sorted folder by folder, by code point.

    Args:
        subfolders: patterns of the subfolders to include, for example ``1_*``.

    Returns:
        The path of each file, by its name in the folder.

    Raises:
        OptionError: for what cannot be read, is neither a file nor a folder, has no name in UTF-8 or the name of
            another one, and for a link to a folder that contains the link.
    """
    found: dict[str, Path] = {}
    waiting: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while waiting:
        place, prefix, above = waiting.pop()
        try:
            state = place.stat()
            if (state.st_dev, state.st_ino) in above:
                raise OptionError(f"{place} is a link to a folder that contains the link", hint=_HIDE)
            with os.scandir(place) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            for entry in visible:
                path = place / entry.name
                name = prefix + _composed(path)
                if entry.is_dir():
                    if any(fnmatchcase(name, pattern) for pattern in subfolders):
                        waiting.append((path, f"{name}/", above | {(state.st_dev, state.st_ino)}))
                elif not entry.is_file():
                    what = "a broken link" if entry.is_symlink() else "neither a file nor a folder"
                    raise OptionError(f"{path} is {what}", hint=_HIDE)
                elif name in found:
                    raise OptionError(
                        f"{path} and {found[name]} have the same name in two Unicode spellings", hint=_HIDE
                    )
                else:
                    found[name] = path
        except OSError as error:
            raise OptionError(f"cannot read {error.filename or place}: {error.strerror}", hint=_HIDE) from error
    return {name: found[name] for name in sorted(found, key=lambda name: name.split("/"))}


def near(path: Path) -> str:
    """Suggest paths close to one that does not exist; empty if there are none, or the path exists."""
    with contextlib.suppress(OSError, ValueError):  # a ValueError means an invalid file name
        if path.exists():
            return ""
        if not path.parent.exists():
            return near(path.parent)
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
        if close := get_close_matches(path.name, names):
            return f"Did you mean {' or '.join(str(path.with_name(name)) for name in close)}?"
    return ""


def composed(name: str) -> str:
    """Return a name in the spelling of `list_files`."""
    return unicodedata.normalize("NFC", name)


def file_sha256(path: Path) -> str:
    """Digest a file's content: 64 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read, or is a pipe or a device, whose content may change.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _composed(path: Path) -> str:
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{str(path)!a} has a name that is not UTF-8", hint="Rename it.") from error
    return composed(path.name)
