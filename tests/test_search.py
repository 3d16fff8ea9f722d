"""Search gives what brute force gives, in bounded memory, for every vector form."""

from __future__ import annotations

import sys
import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmquant.errors import MissingDependencyError, OptionError, PluginError, SanityError, UnsupportedError
from llmquant.retrieval import scoring
from llmquant.retrieval.index import Index
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.experiment import VectorForm

CODECS = ("float32", "float16", "int8", "int4", "binary")
# Products of small whole numbers are exact in any order, so equal scores are equal to the bit.
WHOLE = st.integers(-2, 2)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors(count, width=32, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, width)))


def ragged(counts, width=32, seed=0):
    return Embeddings.of([vectors(count, width, seed + n) for n, count in enumerate(counts)], width=width)


def stable(scores, k):
    """Sort whole rows stably, the largest first."""
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


def plain_maxsim(queries, documents):
    return np.array(
        [
            [(queries.item(q) @ documents.item(d).T).max(axis=1).sum() for d in range(len(documents))]
            for q in range(len(queries))
        ],
        np.float32,
    )


def small_blocks():
    """Let a few documents fill several blocks."""
    return patch.multiple(scoring, _NUMBERS=9, _COLUMNS=2)


@given(arrays(np.float32, (11, 3), elements=WHOLE), arrays(np.float32, (5, 3), elements=WHOLE), st.integers(1, 12))
def test_equal_scores_keep_the_order_of_documents(documents, queries, k):
    """Across blocks, results are those of a stable sort of all scores."""
    with small_blocks(), patch.object(scoring, "_SPARE", 0):
        hits = Index.build(Embeddings(documents), VectorForm(), "dot").search(Embeddings(queries), k)
    ids, scores = stable(queries @ documents.T, k)
    assert (hits.ids == ids).all()
    assert (hits.scores == scores).all()


@pytest.mark.parametrize("codec", CODECS)
def test_dense_search_equals_brute_force(codec):
    """Ids and scores are those of float64 products with the decoded documents, rounded and sorted stably."""
    documents, queries = vectors(9000), vectors(30, seed=1)
    index = Index.build(Embeddings(documents), VectorForm(codec=codec), "cosine")
    hits = index.search(Embeddings(queries), 7)
    decoded = index.held.decode(slice(None)).astype(np.float64)
    ids, scores = stable((queries.astype(np.float64) @ decoded.T).astype(np.float32), 7)
    assert (hits.ids == ids).all()
    assert (hits.scores == scores).all()


def test_scores_do_not_depend_on_other_queries():
    """One query alone gives the same bits as among others."""
    index = Index.build(Embeddings(vectors(500)), VectorForm(), "cosine")
    queries = Embeddings(vectors(40, seed=1))
    together, alone = index.search(queries, 5), index.search(queries.select([17]), 5)
    assert (together.scores[17] == alone.scores[0]).all()


def test_equal_documents_have_equal_scores():
    """Copies of a document come in their order, wherever in a block they are."""
    documents = vectors(300, 100)
    documents[[3, 120, 299]] = documents[7]
    hits = Index.build(Embeddings(documents), VectorForm(), "cosine").search(Embeddings(documents[7:8]), 4)
    assert hits.ids.tolist() == [[3, 7, 120, 299]]
    assert len(set(hits.scores[0])) == 1


@given(
    st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=7), st.lists(st.integers(1, 3), min_size=1, max_size=4)
)
def test_maxsim_equals_plain_loops(data, documents, queries):
    """Ragged documents and queries in several blocks score and rank as by two plain loops."""
    made = [
        Embeddings.of([data.draw(arrays(np.float32, (count, 3), elements=WHOLE)) for count in counts], width=3)
        for counts in (documents, queries)
    ]
    with small_blocks():
        hits = Index.build(made[0], VectorForm(), "maxsim").search(made[1], len(documents))
    ids, scores = stable(plain_maxsim(made[1], made[0]), len(documents))
    assert (hits.ids == ids).all()
    assert (hits.scores == scores).all()


def test_maxsim_keeps_negative_best_products():
    """A document that points away scores below zero beside longer ones, whose padding would have scored 0."""
    query = Embeddings.of([np.array([[1, 0]], np.float32)], width=2)
    away = Embeddings.of([np.array([[-1, 0]], np.float32), np.array([[-1, 0], [0, 1]], np.float32)], width=2)
    assert Index.build(away, VectorForm(), "maxsim").search(query, 2).scores.tolist() == [[0, -1]]


@pytest.mark.parametrize("codec", CODECS)
def test_maxsim_scores_coded_documents(codec):
    """Scores are those of the decoded vectors."""
    documents, queries = ragged([5, 40, 1, 17, 8]), ragged([3, 9], seed=50)
    index = Index.build(documents, VectorForm(codec=codec), "maxsim")
    decoded = Embeddings(index.held.decode(slice(None)), documents.offsets)
    assert np.allclose(index.search(queries, 5).scores, stable(plain_maxsim(queries, decoded), 5)[1], atol=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "maxsim"])
def test_memory_does_not_grow_with_documents(similarity):
    """Four times the documents take hardly more memory to search, beside what holds them."""

    def peak(count):
        documents = Embeddings(vectors(50 * count, 64)) if similarity == "cosine" else ragged([50] * count, 64)
        queries = Embeddings(vectors(40, 64)) if similarity == "cosine" else ragged([20] * 2, 64)
        index = Index.build(documents, VectorForm(codec="int8"), similarity)
        tracemalloc.start()
        index.search(queries, 5)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    with patch.object(scoring, "_NUMBERS", 2**16):  # so that few documents fill many blocks
        assert peak(800) < 1.2 * peak(200)


def test_cut_vectors_have_unit_length_again():
    """Cosine similarities of the leading dimensions are those of vectors cut and normalized beforehand."""
    documents, queries = vectors(50), vectors(4, seed=1)
    hits = Index.build(Embeddings(documents), VectorForm(dim=8), "cosine").search(Embeddings(queries), 5)
    exact = unit(queries[:, :8]).astype(np.float64) @ unit(documents[:, :8]).astype(np.float64).T
    assert np.allclose(hits.scores, stable(exact, 5)[1], atol=1e-6)


def test_cut_vectors_of_late_interaction_have_unit_length_again():
    """Each of a document's vectors, and of a query's, is normalized after the cut."""
    documents, queries = ragged([4, 9, 2]), ragged([3, 5], seed=9)
    cut = [Embeddings(unit(items.values[:, :8]), items.offsets) for items in (documents, queries)]
    hits = Index.build(documents, VectorForm(dim=8), "maxsim").search(queries, 3)
    assert np.allclose(hits.scores, stable(plain_maxsim(cut[1], cut[0]), 3)[1], atol=1e-5)


def test_dot_products_keep_lengths():
    """With dot similarity cut vectors are left as they are."""
    documents, queries = 3 * vectors(50), 2 * vectors(4, seed=1)
    hits = Index.build(Embeddings(documents), VectorForm(dim=8), "dot").search(Embeddings(queries), 5)
    assert np.allclose(hits.scores, stable(queries[:, :8] @ documents[:, :8].T, 5)[1], atol=1e-5)


def test_rescoring_all_gives_float32_results():
    """With as many candidates as documents, a binary index ranks and scores as a float32 one does."""
    documents, queries = Embeddings(vectors(60)), Embeddings(vectors(5, seed=1))
    rescored = Index.build(documents, VectorForm(codec="binary", dim=16, rescore=12), "cosine").search(queries, 5)
    exact = Index.build(documents, VectorForm(dim=16), "cosine").search(queries, 5)
    assert (rescored.ids == exact.ids).all()
    assert (rescored.scores == exact.scores).all()


def test_rescoring_looks_at_no_more_than_the_candidates():
    """The results of rescore=2 are the best of the first search's 2k."""
    documents, queries = Embeddings(vectors(200)), Embeddings(vectors(5, seed=1))
    rescored = Index.build(documents, VectorForm(codec="binary", rescore=2), "cosine").search(queries, 4)
    first = Index.build(documents, VectorForm(codec="binary"), "cosine").search(queries, 8)
    for found, candidates in zip(rescored.ids, first.ids, strict=True):
        assert set(found) <= set(candidates)


def test_rescoring_pooled_documents_uses_all_their_vectors():
    """Pooled documents find candidates, and the vectors before pooling rank them."""
    documents, queries = ragged([20, 31, 9, 16]), ragged([3, 5], seed=9)
    rescored = Index.build(documents, VectorForm(pool=4, rescore=4), "maxsim").search(queries, 4)
    ids, scores = stable(plain_maxsim(queries, documents), 4)
    assert (rescored.ids == ids).all()
    assert np.allclose(rescored.scores, scores, atol=1e-5)


@pytest.mark.parametrize(("codec", "size"), list(zip(CODECS, (64, 32, 16, 8, 2), strict=True)))
def test_bytes_are_those_held(codec, size):
    """A document takes the bytes of its codes: with 16 dimensions and 10 vectors pooled by 2, five vectors' worth."""
    dense = Index.build(Embeddings(vectors(12)), VectorForm(dim=16, codec=codec), "cosine")
    late = Index.build(ragged([10, 10, 10]), VectorForm(dim=16, codec=codec, pool=2), "maxsim")
    assert dense.bytes_per_document == dense.held.codes.nbytes / 12 == size
    assert late.bytes_per_document == late.held.codes.nbytes / 3 == 5 * size


def test_few_documents_are_all_returned():
    """Asked for more than there are, search returns them all."""
    hits = Index.build(Embeddings(vectors(3)), VectorForm(), "cosine").search(Embeddings(vectors(2, seed=1)), 10)
    assert hits.ids.shape == hits.scores.shape == (2, 3)


def test_no_queries_find_nothing():
    """A search without queries has no rows."""
    nothing = Embeddings(np.zeros((0, 32), np.float32))
    assert Index.build(Embeddings(vectors(3)), VectorForm(), "cosine").search(nothing, 2).ids.shape == (0, 2)


NOT_FINITE = np.full((2, 32), np.nan, np.float32)


@pytest.mark.parametrize(
    ("documents", "form", "similarity", "error"),
    [
        (Embeddings(vectors(3)), VectorForm(dim=33), "cosine", OptionError),
        (Embeddings(vectors(3)), VectorForm(pool=2), "cosine", UnsupportedError),
        (Embeddings(vectors(0)), VectorForm(), "cosine", UnsupportedError),
        (Embeddings(NOT_FINITE), VectorForm(), "cosine", SanityError),
        (ragged([2, 3]), VectorForm(), "cosine", PluginError),
        (Embeddings(vectors(3), np.array([0, 2, 2, 3])), VectorForm(), "maxsim", PluginError),
    ],
    ids=["too wide", "pooling of single vectors", "no documents", "not finite", "several vectors", "no vector"],
)
def test_what_cannot_be_searched_is_refused(documents, form, similarity, error):
    """Vectors that a form does not fit raise a deliberate error."""
    with pytest.raises(error):
        Index.build(documents, form, similarity)


def test_queries_of_another_width_are_refused():
    """Queries and documents of different models are not compared."""
    index = Index.build(Embeddings(vectors(3)), VectorForm(), "cosine")
    with pytest.raises(PluginError, match="queries have 16 dimensions and documents 32"):
        index.search(Embeddings(vectors(1, 16)), 1)


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_engines_find_nearly_what_is_nearest(engine, codec):
    """A graph of 500 documents finds at least nine of the ten nearest, and says how many bytes it takes."""
    pytest.importorskip(engine)
    documents, queries = Embeddings(vectors(500)), Embeddings(vectors(20, seed=1))
    exact = Index.build(documents, VectorForm(), "cosine").search(queries, 10)
    index = Index.build(documents, VectorForm(codec=codec), "cosine", engine=engine)
    hits = index.search(queries, 10)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(hits.ids, exact.ids, strict=True)]) >= 9
    assert np.allclose(hits.scores, exact.scores, atol=0.05)
    assert 32 * (1 if codec == "int8" else 4) < index.bytes_per_document < 600


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_engines_find_the_same_every_time(engine):
    """A graph built again over the same documents gives the same documents and scores, on any number of cores."""
    pytest.importorskip(engine)
    documents, queries = Embeddings(vectors(500)), Embeddings(vectors(20, seed=1))
    once, *others = [
        Index.build(documents, VectorForm(), "cosine", engine=engine).search(queries, 10) for _ in range(20)
    ]
    for again in others:
        assert np.array_equal(again.ids, once.ids)
        assert np.array_equal(again.scores, once.scores)


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
@pytest.mark.parametrize(("codec", "similarity"), [("binary", "cosine"), ("float32", "maxsim")])
def test_engines_refuse_what_they_cannot_hold(engine, codec, similarity):
    """Late interaction and bits are refused with the reason, whether or not the engine is installed."""
    with pytest.raises(UnsupportedError, match=engine):
        Index.build(Embeddings(vectors(3)), VectorForm(codec=codec), similarity, engine=engine)


@pytest.mark.parametrize(("engine", "line"), [("faiss", "faiss-cpu"), ("usearch", "usearch")])
def test_a_missing_engine_says_how_to_install_it(engine, line):
    """Without the package the error has the line that installs it."""
    absent = {engine: None, f"{engine}.index": None}
    with patch.dict(sys.modules, absent), pytest.raises(MissingDependencyError, match=f"pip install {line}"):
        Index.build(Embeddings(vectors(3)), VectorForm(), "cosine", engine=engine)
