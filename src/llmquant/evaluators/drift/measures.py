"""Measures of drift between two searches: shared results, their order, and the cosine of vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmquant.retrieval.vectors import Embeddings

Ids = NDArray[np.int64]


def overlap(baseline: Ids, variant: Ids) -> NDArray[np.float64]:
    """Return per query the share of the baseline's results that the variant returns too.

    Args:
        baseline: ``(queries, k)`` documents, best first.
        variant: ``(queries, k)`` documents, best first.

    Returns:
        ``(queries,)`` between 0 and 1.
    """
    shared = (baseline[:, :, None] == variant[:, None, :]).any(axis=2)
    found: NDArray[np.float64] = shared.mean(axis=1)
    return found


def rank_flips(ranks: Ids) -> NDArray[np.float64]:
    """Return per query the share of pairs that the variant orders in reverse: (1 - Kendall's tau) / 2.

    Args:
        ranks: ``(queries, k)`` the variant's ranks of the baseline's results, in the baseline's order.

    Returns:
        ``(queries,)`` between 0 and 1; 0 if ``k`` is 1.
    """
    k = ranks.shape[1]
    first, second = np.triu_indices(k, 1)
    if not len(first):
        return np.zeros(len(ranks))
    found: NDArray[np.float64] = (ranks[:, first] > ranks[:, second]).mean(axis=1)
    return found


def places(ranking: Ids, documents: Ids) -> Ids:
    """Return the ranks of documents.

    Args:
        ranking: ``(queries, n)`` every document once, best first.
        documents: ``(queries, k)`` documents to find.

    Returns:
        ``(queries, k)`` ranks from 0.
    """
    where = np.empty_like(ranking)
    np.put_along_axis(where, ranking, np.arange(ranking.shape[1])[None, :], axis=1)
    return np.take_along_axis(where, documents, axis=1)


def cosines(baseline: Embeddings, variant: Embeddings) -> NDArray[np.float64]:
    """Return the cosine between each item's vectors in two variants; for late interaction, the mean over its vectors.

    Args:
        baseline: ``n`` items.
        variant: ``n`` items with the same numbers of vectors.

    Returns:
        ``(n,)`` cosines; NaN for an item whose numbers of vectors differ.
    """
    found = np.full(len(baseline), np.nan)
    for number in range(len(baseline)):
        one, other = (np.atleast_2d(side.item(number)).astype(np.float64) for side in (baseline, variant))
        if one.shape == other.shape:
            lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            found[number] = ((one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)).mean()
    return found
