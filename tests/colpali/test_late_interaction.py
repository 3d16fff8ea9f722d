"""MaxSim and token pooling are those of colpali-engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("colpali_engine", exc_type=ImportError)  # without torchvision it cannot be imported either

from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor

from llmquant.retrieval.index import Index
from llmquant.retrieval.pooling import pooled
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.experiment import VectorForm


def _items(counts, seed):
    """Return clustered vectors that all point to one side, so that no best product is below the zero of padding."""
    numbers = np.random.default_rng(seed)
    items = []
    for count in counts:
        centres = numbers.standard_normal((max(count // 5, 1), 64))
        vectors = np.abs(centres[numbers.integers(0, len(centres), count)] + numbers.standard_normal((count, 64)))
        items.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    return items, Embeddings.of(items, width=64)


def test_scores_are_those_of_its_scorer():
    """Every query against every document, ragged, in the same order."""
    (queries, ours), (documents, kept) = _items([3, 9, 20], 0), _items([40, 7, 130, 61, 1], 1)
    theirs = BaseVisualRetrieverProcessor.score_multi_vector(
        [torch.from_numpy(item) for item in queries], [torch.from_numpy(item) for item in documents], device="cpu"
    ).numpy()
    hits = Index.build(kept, VectorForm(), "maxsim").search(ours, 5)
    assert (hits.ids == np.argsort(-theirs, axis=1, kind="stable")).all()
    assert np.allclose(hits.scores, np.take_along_axis(theirs, hits.ids, axis=1), atol=1e-5)


@pytest.mark.filterwarnings("ignore::scipy.cluster.hierarchy.ClusterWarning")  # theirs, of its matrix of distances
@pytest.mark.parametrize("factor", [2, 3, 9])
def test_pooling_is_that_of_its_pooler(factor):
    """The same clusters in the same order, with the same means."""
    items, ours = _items([2, 5, 50, 256], 2)
    theirs = HierarchicalTokenPooler().pool_embeddings([torch.from_numpy(item) for item in items], pool_factor=factor)
    found = pooled(ours, factor)
    assert np.diff(found.offsets).tolist() == [len(item) for item in theirs]
    assert np.allclose(found.values, torch.cat(theirs).numpy(), atol=1e-6)
