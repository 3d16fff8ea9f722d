"""Exact search of every query in all documents, in blocks, so that memory does not grow with their number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmquant.retrieval.codecs import Coded, Floats
from llmquant.retrieval.vectors import Embeddings

Ids = NDArray[np.int64]
# Limits of a block of documents' vectors by queries' vectors: the number of queries' vectors, and the float32 numbers
# of unpacked vectors (8 MiB) and of scores (16 MiB). Larger blocks are no faster, smaller ones wait for BLAS' threads.
_COLUMNS = 1024
_NUMBERS = 2**21
_SCORES = 2**22
# float32 products of equal vectors differ in the last bits by their place in the block. This number of documents more
# than requested are scored again, to find the true order around the last place.
_SPARE = 32
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Hits:
    """The best documents of each query, best first.

    Attributes:
        ids: ``(queries, k)`` places of the documents in the collection; -1 if an approximate engine found fewer.
        scores: ``(queries, k)`` scores of these documents.
    """

    ids: Ids
    scores: Floats


def dense_top(queries: Floats, documents: Coded, k: int) -> Hits:
    """Find the `k` documents with the largest inner products.

    A score is summed in float64 and rounded to float32, so that it depends neither on other queries nor on the number
    of threads, and equal documents have equal scores.

    Args:
        queries: ``(queries, width)`` vectors.
        k: at most the number of documents.

    Returns:
        Documents of equal score in their order in the collection.
    """
    count = min(k + _SPARE, len(documents))
    found: list[Ids] = [np.empty((0, count), np.int64)]
    for start in range(0, len(queries), _COLUMNS):
        block = queries[start : start + _COLUMNS]
        found.append(best(_products(block, documents), len(block), count).ids)
    return dense_rescore(queries, documents, np.concatenate(found), k)


def dense_rescore(queries: Floats, documents: Coded, candidates: Ids, k: int) -> Hits:
    """Score each query's candidates like `dense_top`, and keep the `k` best.

    Args:
        candidates: ``(queries, candidates)`` places of documents; -1 means no document.
    """
    scores = np.empty(candidates.shape, np.float32)
    for row, (query, ids) in enumerate(zip(queries, candidates, strict=True)):
        # einsum sums every row in the same order; BLAS does not.
        scores[row] = np.einsum("nw,w->n", documents.decode(ids).astype(np.float64), query.astype(np.float64))
    return _ranked(np.where(candidates < 0, -np.inf, scores).astype(np.float32), candidates, k)


def maxsim_top(queries: Embeddings, documents: Coded, offsets: Ids, k: int) -> Hits:
    """Find the `k` documents with the largest sums, over a query's vectors, of the best inner product in the document.

    The best product may be negative, unlike in padded batches, whose zeros can be the best product. Products are
    float32 and their sums float64.

    Args:
        documents: vectors of all documents, one document after the other.
        offsets: ``(documents + 1,)`` the beginning and the end of each document; no document is empty.
        k: at most the number of documents.

    Returns:
        Documents of equal score in their order in the collection.
    """
    starts = offsets_of(queries)
    found = [Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))]
    for first, last in _groups(starts, _COLUMNS):
        values = queries.values[starts[first] : starts[last]].astype(np.float32, copy=False)
        blocks = _maxsim(values, starts[first:last] - starts[first], documents, offsets)
        found.append(best(blocks, last - first, k))
    return Hits(np.concatenate([hits.ids for hits in found]), np.concatenate([hits.scores for hits in found]))


def maxsim_rescore(queries: Embeddings, documents: Embeddings, candidates: Ids, k: int) -> Hits:
    """Score each query's candidates like `maxsim_top`, and keep the `k` best.

    Args:
        candidates: ``(queries, candidates)`` places of documents.
    """
    scores = np.empty(candidates.shape, np.float32)
    for row, ids in enumerate(candidates):
        chosen = documents.select(ids)
        query = queries.item(row).reshape(-1, queries.width).astype(np.float32, copy=False)
        coded = Coded.encode(chosen.values, "float32")
        scores[row] = np.concatenate(list(_maxsim(query, np.zeros(1, np.int64), coded, offsets_of(chosen))), axis=1)[0]
    return _ranked(scores, candidates, k)


def offsets_of(embeddings: Embeddings) -> Ids:
    """Return the beginning and the end of each item's vectors: ``(items + 1,)``."""
    return np.arange(len(embeddings) + 1) if embeddings.offsets is None else embeddings.offsets


def best(blocks: Iterable[Floats], queries: int, k: int) -> Hits:
    """Keep the `k` largest scores from blocks of scores; among equal scores the first ones.

    Args:
        blocks: blocks ``(queries, documents)`` of consecutive documents; fewer than 2^31 documents in total.
    """
    kept: Ids = np.empty((queries, 0), np.int64)
    start = 0
    for block in blocks:
        ids = np.arange(start, start + block.shape[1])
        kept = _largest(np.concatenate([kept, _keys(block, ids)], axis=1), k)
        start += block.shape[1]
    return _hits(kept)


def _products(queries: Floats, documents: Coded) -> Iterator[Floats]:
    scaled, bias = documents.fold(queries)
    rows = _rows(queries)
    for start in range(0, len(documents), rows):
        numbers = documents.numbers(slice(start, start + rows))
        # BLAS' threads do not pay off for one query: on a busy machine they made the search ten times as slow.
        products = scaled @ numbers.T if len(scaled) > 1 else np.einsum("nw,w->n", numbers, scaled[0])
        yield products + bias[:, None]


def _maxsim(queries: Floats, starts: Ids, documents: Coded, offsets: Ids) -> Iterator[Floats]:
    """Yield ``(queries, documents)`` scores of consecutive documents.

    Args:
        queries: all vectors of all queries; `starts` has the beginning of each query.
    """
    scaled, bias = documents.fold(queries)
    for first, last in _groups(offsets, _rows(queries)):
        bounds = offsets[first : last + 1]
        products = documents.numbers(slice(bounds[0], bounds[-1])) @ scaled.T
        inner = (bounds - bounds[0]).tolist()
        largest = np.stack([products[a:b].max(axis=0) for a, b in itertools.pairwise(inner)])
        yield np.add.reduceat(largest + bias, starts, axis=1, dtype=np.float64).astype(np.float32).T


def _rows(queries: Floats) -> int:
    return max(min(_SCORES // len(queries), _NUMBERS // queries.shape[1]), 1)


def _groups(offsets: Ids, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of items with at most `most` vectors in total; an item with more vectors is yielded alone."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1)
        yield first, last
        first = last


def _ranked(scores: Floats, ids: Ids, k: int) -> Hits:
    return _hits(_largest(_keys(scores, ids), k))


def _keys(scores: Floats, ids: Ids) -> Ids:
    """Combine a score and a document into one integer that grows with the score and falls with the document's place.

    The integers of a query are all different, so that every algorithm finds the same largest ones.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    return (_ordered(bits).astype(np.int64) << 32) | (~ids & _LOW)


def _ordered(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Map the bits of float32 numbers to integers of the same order, and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _largest(keys: Ids, k: int) -> Ids:
    return keys if keys.shape[1] <= k else np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]


def _hits(keys: Ids) -> Hits:
    keys = np.sort(keys, axis=1)[:, ::-1]
    ids = (~keys & _LOW).astype(np.uint32).view(np.int32).astype(np.int64)
    return Hits(ids, _ordered((keys >> 32).astype(np.int32)).view(np.float32))
