"""The cache of encoded vectors on disk: parts that are written once, and read by any number of processes.

A part is one file for one role: header, index (keys, checksums, number of vectors per item), values. A part appears by
a rename and never changes, so no process waits for another one, even on network file systems. Values are read with
ordinary reads rather than mapped: deleting a mapped file on another machine ends the process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmquant.storage.atomic import file_mode, make_folder, replacing, write_text
from llmquant.storage.cache import MANIFEST, Cache
from llmquant.study.embedding import Role
from llmquant.study.experiment import Digest

_MAGIC = b"LQEMB001"
# The name contains the format's version too, so parts of another version are ignored instead of deleted as damaged.
_SUFFIX = ".part1"
# Items, vectors, width, bytes per number, checksum of these numbers and of the index.
_HEADER = struct.Struct("<8sQQIII")
_KEY_BYTES = 16
# This number of small parts is merged into one; larger parts are left unchanged, so that merging stays cheap.
_MANY_PARTS, _SMALL_BYTES = 32, 16 * 2**20
# Neighbours in a part are read together, up to this number of bytes.
_READ_BYTES = 8 * 2**20
# Another process can merge a part between listing and reading; then the parts are listed again.
_LISTINGS = 10
_LEFT_BEHIND_S = 86400

_log = logging.getLogger(__name__)


class EmbeddingCache:
    """The vectors of one embedder and role, by `Item.key`.

    Args:
        fingerprint: digest of everything that a vector depends on besides its item.
        width: number of dimensions.
        late: whether items have several vectors, ``(vectors, width)`` float16, or one vector, ``(width,)`` float32.
        name: the embedder's name, for `Cache.entries`.
    """

    def __init__(
        self, cache: Cache, fingerprint: Digest, role: Role, *, width: int, late: bool, name: str = ""
    ) -> None:
        self.folder = cache.root / "embeddings" / fingerprint.removeprefix("sha256:")[:32]
        self.dtype = np.dtype("<f2" if late else "<f4")
        self._role = role
        self._name = name
        self._width = width
        self._late = late

    def read(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, NDArray[Any]]]:  # Any: float32 or float16
        """Yield the cached ones of `keys`, each once, with their vectors, in the order of the parts.

        Values of other keys are not read. A damaged part is deleted with a warning, and its items are encoded again.
        """
        wanted = set(keys)
        with contextlib.suppress(OSError):  # a read-only cache is usable too
            os.utime(self.folder)  # `Cache.prune` uses this time
        for _ in range(_LISTINGS):
            merged_away = False
            for path in self._parts() if wanted else ():
                try:
                    with path.open("rb") as file:
                        for key, vectors in self._read_part(file, wanted):
                            wanted.discard(key)
                            yield key, vectors
                except _DamagedError as error:
                    _log.warning("cached vectors in %s are damaged (%s); they are made again", path, error)
                    with contextlib.suppress(OSError):
                        path.unlink()
                except OSError as error:
                    if error.errno in {errno.ENOENT, errno.ESTALE}:
                        merged_away = True
                    else:
                        _log.warning("cached vectors in %s cannot be read (%s); they are made again", path, error)
            if not merged_away:
                return

    def write(self, vectors: Mapping[bytes, NDArray[Any]]) -> None:  # Any: float32 or float16
        """Add a part, and merge small parts if there are many.

        A full or read-only disk causes only a warning: this call keeps its result, and the next call encodes again.

        Args:
            vectors: vectors by key, with the shape and dtype that `read` yields.
        """
        try:
            self._write_part(vectors)
            self._merge()
        except OSError as error:
            _log.warning("vectors cannot be kept in %s: %s", self.folder, error)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self._role}-*{_SUFFIX}"))

    def _read_part(
        self, file: BinaryIO, wanted: set[bytes] | None = None
    ) -> Iterator[tuple[bytes, NDArray[Any]]]:  # Any: as above
        index = self._read_index(file)
        size = self._width * self.dtype.itemsize
        rows = [row for row, key in enumerate(index.keys) if wanted is None or key in wanted]
        for run in _runs(rows, index.starts, most=_READ_BYTES // size):
            start, end = int(index.starts[run[0]]), int(index.starts[run[-1] + 1])
            file.seek(index.values_at + start * size)
            block = memoryview(file.read((end - start) * size))
            for row in run:
                data = block[(int(index.starts[row]) - start) * size : (int(index.starts[row + 1]) - start) * size]
                if zlib.crc32(data) != index.checksums[row]:
                    raise _DamagedError(f"the checksum of item {row} is wrong")
                values = np.frombuffer(data, self.dtype)
                yield index.keys[row], values.reshape(-1, self._width) if self._late else values

    def _read_index(self, file: BinaryIO) -> _Index:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise _DamagedError(f"it has {len(head)} bytes")
        magic, items, count, width, itemsize, checksum = _HEADER.unpack(head)
        size = os.fstat(file.fileno()).st_size
        expected = _HEADER.size + items * (_KEY_BYTES + 8) + count * width * itemsize
        if magic != _MAGIC or size != expected:
            raise _DamagedError(f"it has {size} bytes, not {expected}")
        data = file.read(items * (_KEY_BYTES + 8))
        if zlib.crc32(head[: _HEADER.size - 4] + data) != checksum:
            raise _DamagedError("the checksum of its index is wrong")
        if (width, itemsize) != (self._width, self.dtype.itemsize):
            raise _DamagedError(f"vectors of {width} x {itemsize} bytes, not {self._width} x {self.dtype.itemsize}")
        keys, rest = data[: items * _KEY_BYTES], data[items * _KEY_BYTES :]
        checksums, counts = np.frombuffer(rest, "<u4").reshape(2, items)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return _Index(np.frombuffer(keys, f"V{_KEY_BYTES}").tolist(), checksums, starts, _HEADER.size + len(data))

    def _write_part(self, vectors: Mapping[bytes, NDArray[Any]]) -> None:  # Any: as above
        if not vectors:
            return
        values = [np.ascontiguousarray(value, self.dtype) for value in vectors.values()]
        counts = np.array([value.size // self._width for value in values], "<u4")
        checksums = np.array([zlib.crc32(value.data) for value in values], "<u4")
        index = b"".join(vectors) + checksums.tobytes() + counts.tobytes()
        head = _HEADER.pack(_MAGIC, len(vectors), int(counts.sum()), self._width, self.dtype.itemsize, 0)[:-4]
        name = f"{self._role}-{uuid.uuid4().hex}{_SUFFIX}"
        if not (make_folder(self.folder) / MANIFEST).exists():
            write_text(self.folder / MANIFEST, json.dumps({"name": self._name}))
        with replacing(self.folder / name) as partial:
            partial.touch(file_mode())
            with partial.open("wb") as file:
                file.write(head + struct.pack("<I", zlib.crc32(head + index)) + index)
                for value in values:
                    file.write(value.data)

    def _merge(self) -> None:
        from filelock import FileLock, Timeout

        if len(self._small_parts()) < _MANY_PARTS:
            return
        # If the lock is held, another process is merging. A file system without locks only has more parts.
        with contextlib.suppress(Timeout, NotImplementedError), FileLock(self.folder / "merge.lock", timeout=0):
            merged: dict[bytes, NDArray[Any]] = {}  # Any: as above
            read = []
            for path in self._small_parts():
                try:
                    with path.open("rb") as file:
                        merged.update(self._read_part(file))
                except _DamagedError as error:
                    _log.warning("cached vectors in %s are damaged (%s)", path, error)
                read.append(path)
            self._write_part(merged)
            for path in read:
                path.unlink(missing_ok=True)
            for path in self.folder.glob(f".*{_SUFFIX}*"):  # files of killed writers, and of active ones
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                        path.unlink()

    def _small_parts(self) -> list[Path]:
        found = []
        for path in self._parts():
            with contextlib.suppress(FileNotFoundError):  # merged by another process
                if path.stat().st_size < _SMALL_BYTES:
                    found.append(path)
        return found


@dataclass(frozen=True)
class _Index:
    """The index of a part.

    Attributes:
        checksums: CRC-32 of each item's values.
        starts: ``(items + 1,)``: item ``i`` has the vectors from ``starts[i]`` to ``starts[i + 1]``.
        values_at: offset of the values in the file, in bytes.
    """

    keys: list[bytes]
    checksums: NDArray[np.uint32]
    starts: NDArray[np.int64]
    values_at: int


class _DamagedError(Exception):
    """A part differs from what was written."""


def _runs(rows: Sequence[int], starts: NDArray[np.int64], *, most: int) -> Iterator[list[int]]:
    """Yield groups of neighbouring rows, up to `most` vectors per group unless a single row has more."""
    run: list[int] = []
    for row in rows:
        if run and (row != run[-1] + 1 or starts[row + 1] - starts[run[0]] > most):
            yield run
            run = []
        run.append(row)
    if run:
        yield run
