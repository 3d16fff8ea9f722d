"""Turn items into vectors: read cached vectors, and encode and cache the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmquant.errors import ItemError, UnsupportedError
from llmquant.retrieval.contents import Contents, contents_of, name_of, parts_of
from llmquant.retrieval.embedding_cache import EmbeddingCache
from llmquant.retrieval.encode_loop import Task, encode_each
from llmquant.retrieval.items import Item
from llmquant.retrieval.vectors import Embeddings, scale_to_unit
from llmquant.study.embedding import EmbedderInfo, Role

if TYPE_CHECKING:
    from llmquant.retrieval.loaded import LoadedEmbedder

Progress = Callable[[int, int], None]

# The most work that a killed process loses.
_FLUSH_S, _FLUSH_ITEMS = 10.0, 4096


@dataclass(frozen=True)
class Encoded:
    """The vectors of the items that could be encoded, and the faults of the others.

    Attributes:
        embeddings: vectors of the items at `kept`, in their order.
        kept: indices of encoded items, ascending.
        skipped: the fault of each other item, by index.
    """

    embeddings: Embeddings
    kept: NDArray[np.int64]
    skipped: Mapping[int, str]


def encode(
    subject: LoadedEmbedder, items: Sequence[Item], role: Role, progress: Progress = lambda done, total: None
) -> Embeddings:
    """Encode items, every content once.

    The result is the same with and without the cache: float32, or float16 for late interaction.

    Args:
        items: read one by one in the calling thread and not held, so that a sequence may read items from files.
        progress: called with (done, total), counting different contents.

    Returns:
        Vectors in full width.

    Raises:
        ItemError: naming the first item that is empty, damaged, too large, of a kind that the embedder does not encode,
            or that does not fit in memory on its own.
        SanityError: naming an item whose vector is not finite.
        PluginError: if the embedder breaks its contract.
        UnsupportedError: if its fusion has no meaning.
    """
    return _encode(subject, items, role, progress, strict=True).embeddings


def encode_some(
    subject: LoadedEmbedder, items: Sequence[Item], role: Role, progress: Progress = lambda done, total: None
) -> Encoded:
    """Encode like `encode`, but skip items that cannot be encoded and report their faults in the result.

    Raises:
        ItemError: only if an item does not fit in memory on its own, because skipping such an item would make the
            result depend on the machine.
    """
    return _encode(subject, items, role, progress, strict=False)


def _encode(subject: LoadedEmbedder, items: Sequence[Item], role: Role, progress: Progress, *, strict: bool) -> Encoded:
    embeds = subject.embeds
    late = embeds.similarity == "maxsim"
    if late and embeds.fusion != "joint":
        raise UnsupportedError(
            f"fusion {embeds.fusion!r} does not support late interaction: text and image have several vectors each",
            hint="Use fusion 'joint'.",
        )
    contents = contents_of(items, role, embeds, strict=strict)
    name = subject.info.use().name
    cache = EmbeddingCache(subject.cache, subject.fingerprint, role, width=embeds.width, late=late, name=name)
    table = _Table(len(contents.keys), embeds.width, late=late)
    for key, vectors in cache.read(contents.keys):
        table.put(contents.keys[key], vectors)
    failed = _encode_missing(subject, items, role, contents, cache, table, progress, strict=strict)
    skipped = dict(contents.skipped)
    kept = []
    for index, rows in contents.items.items():
        bad = [row for row in rows if row in failed]
        if bad:
            other = contents.sources[bad[0]][0] != index
            same = f"{name_of(items[index], index, role)} has the same content: " if other else ""
            skipped[index] = same + failed[bad[0]]
        else:
            kept.append(index)
    embeddings = table.embeddings([contents.items[index] for index in kept], embeds)
    return Encoded(embeddings, np.array(kept, np.int64), dict(sorted(skipped.items())))


def _encode_missing(
    subject: LoadedEmbedder,
    items: Sequence[Item],
    role: Role,
    contents: Contents,
    cache: EmbeddingCache,
    table: _Table,
    progress: Progress,
    *,
    strict: bool,
) -> Mapping[int, str]:
    """Fill the table, and return the faults of the rows that stay empty."""

    def tasks() -> Iterator[Task]:
        for row in np.flatnonzero(~table.filled).tolist():
            index, part = contents.sources[row]
            name = name_of(items[index], index, role)
            found = parts_of(items[index], name, subject.embeds)[part]
            yield Task(row, Item(found.text, found.image, name))

    keys = list(contents.keys)
    done, total = int(table.filled.sum()), len(keys)
    progress(done, total)
    failed: dict[int, str] = {}
    fresh: dict[bytes, NDArray[Any]] = {}  # Any: float32 or float16
    flushed = time.monotonic()
    if done == total:
        return failed
    with closing(encode_each(subject, tasks(), role, dtype=cache.dtype)) as results:
        try:
            for task, result in results:
                if isinstance(result, ItemError):
                    if strict:
                        raise result
                    failed[task.row] = str(result)
                else:
                    fresh[keys[task.row]] = result
                    table.put(task.row, result)
                done += 1
                progress(done, total)
                if len(fresh) >= _FLUSH_ITEMS or time.monotonic() - flushed > _FLUSH_S:
                    cache.write(fresh)
                    fresh, flushed = {}, time.monotonic()
        finally:
            cache.write(fresh)
    return failed


class _Table:
    """Vectors of contents by row, filled in any order.

    Attributes:
        filled: whether each row has its vectors.
    """

    def __init__(self, rows: int, width: int, *, late: bool) -> None:
        self.filled = np.zeros(rows, bool)
        self._late = late
        self._one = np.empty((0 if late else rows, width), np.float32)
        self._several: dict[int, NDArray[np.float16]] = {}

    def put(self, row: int, vectors: NDArray[Any]) -> None:  # Any: float32 or float16
        if self._late:
            self._several[row] = vectors
        else:
            self._one[row] = vectors
        self.filled[row] = True

    def embeddings(self, items: Sequence[tuple[int, ...]], embeds: EmbedderInfo) -> Embeddings:
        """Return the vectors of items by their rows, fusing two rows of an item; the table is unusable afterwards."""
        first = np.array([rows[0] for rows in items], np.int64)
        if self._late:
            return self._ragged(first)
        in_place = np.array_equal(first, np.arange(len(self._one)))  # the common case: nothing is copied
        values: NDArray[np.float32] = self._one if in_place else self._one[first]
        both = np.flatnonzero([len(rows) > 1 for rows in items])
        if len(both):
            fused = values[both] + self._one[[items[place][1] for place in both]]
            if embeds.fusion == "mean":
                fused /= 2
            if embeds.similarity == "cosine":
                scale_to_unit(fused)
            values[both] = fused
        return Embeddings(values)

    def _ragged(self, rows: NDArray[np.int64]) -> Embeddings:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(self._several[row]) for row in rows.tolist()], out=offsets[1:])
        values = np.empty((int(offsets[-1]), self._one.shape[1]), np.float16)
        last = {row: place for place, row in enumerate(rows.tolist())}
        for place, row in enumerate(rows.tolist()):
            values[offsets[place] : offsets[place + 1]] = self._several[row]
            if last[row] == place:
                del self._several[row]  # pages take gigabytes: never hold all of them twice
        return Embeddings(values, offsets)
