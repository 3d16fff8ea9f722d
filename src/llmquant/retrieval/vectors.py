"""Vectors of many items without padding: one vector per item, or several per item for late interaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def scale_to_unit(vectors: NDArray[np.float32]) -> None:
    """Scale rows in place to length 1; zeros stay."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Embeddings:
    """The vectors of ``n`` items.

    Attributes:
        values: ``(vectors, width)`` float32; float16 for late interaction from the cache.
        offsets: ``(n + 1,)`` int64: item ``i`` has the vectors from ``offsets[i]`` to ``offsets[i + 1]``; ``None``
            means that each item has one vector, and ``vectors`` is ``n``.
    """

    values: NDArray[Any]  # Any: float32 or float16
    offsets: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, items: Sequence[NDArray[Any]], *, width: int) -> Embeddings:  # Any: as above
        """Combine the results of ``embed``: arrays of ``(width,)`` or of ``(vectors, width)``.

        Args:
            width: number of dimensions, which is needed if there are no items.
        """
        if not items:
            return cls(np.zeros((0, width), np.float32))
        if items[0].ndim == 1:
            return cls(np.stack(items))
        counts = [len(item) for item in items]
        return cls(np.concatenate(items), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} items, {len(self.values)} vectors of {self.width} {self.values.dtype})"

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def width(self) -> int:
        """Return the number of dimensions."""
        return int(self.values.shape[1])

    def item(self, index: int) -> NDArray[Any]:  # Any: as above
        """Return one item's vector ``(width,)`` or vectors ``(vectors, width)``, without copying."""
        if self.offsets is None:
            found: NDArray[Any] = self.values[index]  # Any: as above
        else:
            found = self.values[self.offsets[index] : self.offsets[index + 1]]
        return found

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Embeddings:
        """Return the items at `indices`, in that order."""
        if self.offsets is None:
            return Embeddings(self.values[np.asarray(indices, np.int64)])
        return Embeddings.of([self.item(int(index)) for index in indices], width=self.width)
