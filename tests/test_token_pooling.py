"""Token pooling follows the published formula."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from llmquant.retrieval.pooling import pooled
from llmquant.retrieval.vectors import Embeddings


def page(rng, count, width=16):
    centres = rng.standard_normal((max(count // 4, 1), width))
    vectors = centres[rng.integers(0, len(centres), count)] + rng.standard_normal((count, width)) / 2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_the_formula(vectors, factor):
    """Pool one document as ``HierarchicalTokenPooler`` says, step by step."""
    tree = linkage(pdist(1 - vectors @ vectors.T), method="ward")
    labels = fcluster(tree, max(len(vectors) // factor, 1), criterion="maxclust")
    means = [vectors[labels == label].mean(axis=0) for label in range(1, labels.max() + 1)]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.integers(2, 9), st.integers(0, 999))
def test_pooling_equals_the_formula(counts, factor, seed):
    """Every document is pooled as by plain scipy calls, alone."""
    rng = np.random.default_rng(seed)
    pages = [page(rng, count) for count in counts]
    found = pooled(Embeddings.of(pages, width=16), factor)
    assert len(found) == len(pages)
    for index, vectors in enumerate(pages):
        assert np.allclose(found.item(index), by_the_formula(vectors, factor), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
def test_pooled_vectors_are_fewer_and_of_unit_length(count, factor, seed):
    """A document has at most its vectors divided by the factor, at least one, each of length 1."""
    found = pooled(Embeddings.of([page(np.random.default_rng(seed), count)], width=16), factor)
    assert 1 <= len(found.values) <= max(count // factor, 1)
    assert np.allclose(np.linalg.norm(found.values, axis=1), 1, atol=1e-5)


def test_equal_vectors_become_one():
    """Copies of two vectors become those two."""
    two = np.eye(2, 16, dtype=np.float32)
    found = pooled(Embeddings.of([np.repeat(two, 5, axis=0)], width=16), 2)
    assert np.allclose(np.sort(found.values, axis=0), np.sort(two, axis=0), atol=1e-6)


def test_half_precision_is_pooled_in_float32():
    """float16 vectors, as the cache keeps them, give what their float32 copies give."""
    vectors = page(np.random.default_rng(0), 30).astype(np.float16)
    found = pooled(Embeddings.of([vectors], width=16), 3)
    assert (found.values == pooled(Embeddings.of([vectors.astype(np.float32)], width=16), 3).values).all()
