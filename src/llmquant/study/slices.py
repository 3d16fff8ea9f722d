"""Slices of a task's documents in a seeded random order: a study can stop after each of them.

The slices double, so that few models are loaded and few documents are scored beyond the ones that were needed.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

from llmquant.study.reading import Count, Positive

_FIRST = 50
_DOUBLINGS = 9  # the slice after 25,600 documents is the rest of the task


@dataclass(frozen=True)
class Slice:
    """Documents that follow each other in the random order of a task's documents.

    Attributes:
        start: number of documents before this slice.
        end: number of documents up to the end of this slice; ``None`` for all the rest.
    """

    start: Count = 0
    end: Positive | None = None

    def places(self, total: int, seed: int) -> list[int]:
        """Return the slice's documents in random order, each by its place among the `total` documents of the task."""
        return list(_order(total, seed)[self.start : self.end])


def slices(limit: int | None) -> tuple[Slice, ...]:
    """List the slices of at most `limit` documents, of which the last one may be shorter: 50, 50, 100, 200, ..."""
    ends = [_FIRST * 2**k for k in range(_DOUBLINGS + 1) if limit is None or _FIRST * 2**k < limit]
    return tuple(Slice(start, end) for start, end in zip([0, *ends], [*ends, limit], strict=True))


@functools.lru_cache(maxsize=8)
def _order(total: int, seed: int) -> tuple[int, ...]:
    digests = [hashlib.sha256(f"{seed} {place}".encode()).digest() for place in range(total)]
    return tuple(sorted(range(total), key=digests.__getitem__))
