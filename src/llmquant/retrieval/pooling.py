"""Token pooling for late interaction: similar vectors of a document are merged, so that fewer are stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from llmquant.retrieval.codecs import Floats
from llmquant.retrieval.vectors import Embeddings


def pooled(documents: Embeddings, factor: int) -> Embeddings:
    """Cluster each document's vectors and keep the clusters' means, at unit length.

    The method and its results are those of colpali-engine's ``HierarchicalTokenPooler`` (Clavié, Chaffin, Adams 2024,
    arXiv:2409.14683): with similarities ``S = X X^T``, Ward clusters of the rows of ``1 - S``, at most
    ``vectors // factor`` of them and at least one.

    Args:
        documents: late-interaction vectors.
        factor: average number of vectors that are merged into one; 1 changes nothing.
    """
    if factor == 1 or documents.offsets is None:
        return documents
    return Embeddings.of(
        [_pool(documents.item(index).astype(np.float32, copy=False), factor) for index in range(len(documents))],
        width=documents.width,
    )


def _pool(vectors: Floats, factor: int) -> Floats:
    most = max(len(vectors) // factor, 1)
    if len(vectors) == 1:
        return vectors
    labels = fcluster(linkage(_row_distances(1 - vectors @ vectors.T), "ward"), most, "maxclust")
    members = labels == np.unique(labels)[:, None]
    means = members.astype(np.float32) @ vectors / members.sum(axis=1, dtype=np.float32)[:, None]
    return unit(means)


def _row_distances(matrix: Floats) -> NDArray[np.float64]:
    """Return the Euclidean distances between rows as scipy's condensed vector.

    With ``|a - b|^2 = |a|^2 + |b|^2 - 2 a . b`` this takes a third of the time of ``pdist`` for 1,030 rows.
    """
    rows = matrix.astype(np.float64)
    products = rows @ rows.T
    squares = np.diag(products)
    upper = np.triu_indices(len(rows), 1)
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squares[upper[0]] + squares[upper[1]] - 2 * products[upper], 0))
    return distances


def unit(vectors: Floats) -> Floats:
    """Divide vectors by their lengths; a vector of zeros stays unchanged."""
    lengths = np.sqrt(np.einsum("nw,nw->n", vectors, vectors, dtype=np.float64))
    divided: Floats = vectors / np.maximum(lengths, np.finfo(np.float32).tiny).astype(np.float32)[:, None]
    return divided
