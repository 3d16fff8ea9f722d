"""Approximate search with the graphs of FAISS and usearch, instead of exact search."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from llmquant.errors import MissingDependencyError, UnsupportedError
from llmquant.retrieval.codecs import Floats
from llmquant.retrieval.scoring import Hits
from llmquant.study.embedding import Similarity
from llmquant.study.experiment import Codec

# Wider than both libraries' defaults (FAISS: 40 and 16; usearch: 128 and 64): the comparison is about codecs, so the
# graph should lose little compared with them.
_EXPANSION_ADD = 200
_EXPANSION_SEARCH = 128


@dataclass(frozen=True)
class Graph:
    """A collection in a library's graph (HNSW).

    Attributes:
        nbytes: bytes of the coded vectors and the links between them.
        search: finds approximately the ``k`` nearest documents of ``(queries, width)`` float32 queries.
    """

    nbytes: int
    search: Callable[[Floats, int], Hits]


def faiss_graph(values: Floats, codec: Codec, similarity: Similarity) -> Graph:
    """Put vectors into FAISS' ``IndexHNSWFlat`` or ``IndexHNSWSQ``, with 32 links per vector.

    Raises:
        UnsupportedError: for late interaction, and for ``binary``: FAISS compares bits with bits, not with floats.
        MissingDependencyError: if faiss is not installed.
    """
    quantizers = {"float32": "", "float16": "QT_fp16", "int8": "QT_8bit", "int4": "QT_4bit"}
    _check("faiss", similarity, codec, tuple(quantizers))
    faiss = _package("faiss", "faiss-cpu")
    shape = (values.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    if codec == "float32":
        index = faiss.IndexHNSWFlat(*shape)
    else:
        kind = getattr(faiss.ScalarQuantizer, quantizers[codec])
        index = faiss.IndexHNSWSQ(shape[0], kind, *shape[1:])
    index.hnsw.efConstruction = _EXPANSION_ADD
    vectors = np.ascontiguousarray(values, np.float32)
    index.train(vectors)
    index.add(vectors)
    links = index.hnsw.neighbors.size() * 4 + index.hnsw.offsets.size() * 8 + index.hnsw.levels.size() * 4

    def search(queries: Floats, k: int) -> Hits:
        index.hnsw.efSearch = max(_EXPANSION_SEARCH, 2 * k)
        scores, ids = index.search(np.ascontiguousarray(queries, np.float32), k)
        return Hits(ids.astype(np.int64), scores)

    return Graph(len(values) * faiss.downcast_index(index.storage).code_size + links, search)


def usearch_graph(values: Floats, codec: Codec, similarity: Similarity) -> Graph:
    """Put vectors into usearch's ``Index``, with its default of 16 links per vector.

    usearch codes queries in the same way as documents. Its ``i8`` scales every vector to length 127, so it does not
    preserve ``dot`` similarities, and it finds fewer of the nearest documents than `Coded`. One thread builds the
    graph, so that the graph is the same every time.

    Raises:
        UnsupportedError: for late interaction, for ``int4``, which usearch does not have, for ``binary``, whose queries
            would be bits, and for ``int8`` with ``dot``.
        MissingDependencyError: if usearch is not installed.
    """
    kinds = {"float32": "f32", "float16": "f16", "int8": "i8"}
    _check("usearch", similarity, codec, tuple(kinds) if similarity == "cosine" else ("float32", "float16"))
    usearch = _package("usearch.index", "usearch")
    index = usearch.Index(
        ndim=values.shape[1],
        metric="cos" if similarity == "cosine" else "ip",
        dtype=kinds[codec],
        expansion_add=_EXPANSION_ADD,
        expansion_search=_EXPANSION_SEARCH,
    )
    # Adding in several threads leaves some documents, different ones each time, that no search finds.
    index.add(np.arange(len(values), dtype=np.uint64), np.ascontiguousarray(values, np.float32), threads=1)

    def search(queries: Floats, k: int) -> Hits:
        index.expansion_search = max(_EXPANSION_SEARCH, 2 * k)
        found = index.search(np.ascontiguousarray(queries, np.float32), k)
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        missing = np.arange(k) >= np.atleast_1d(found.counts if len(queries) > 1 else len(found))[:, None]
        return Hits(
            np.where(missing, -1, keys.astype(np.int64)),
            np.where(missing, -np.inf, 1 - distances).astype(np.float32),
        )

    return Graph(int(index.serialized_length), search)


def _check(engine: str, similarity: Similarity, codec: Codec, codecs: tuple[str, ...]) -> None:
    hint = "Use the exact engine."
    if similarity == "maxsim":
        raise UnsupportedError(f"{engine} compares single vectors, but the similarity is maxsim", hint=hint)
    if codec not in codecs:
        reason = f"{engine} does not score float32 queries against {codec} documents by {similarity} similarity"
        raise UnsupportedError(reason, hint=f"It supports {', '.join(codecs)}. {hint}")


def _package(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} cannot be imported: {error}", hint=f"Install it: pip install {distribution}"
        ) from error
