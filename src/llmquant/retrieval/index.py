"""A collection of documents in one vector form, and the search for the documents nearest to queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmquant.errors import OptionError, PluginError, SanityError, UnsupportedError
from llmquant.retrieval.ann import Graph, faiss_graph, usearch_graph
from llmquant.retrieval.codecs import Coded, Floats
from llmquant.retrieval.pooling import pooled, unit
from llmquant.retrieval.scoring import Hits, Ids, dense_rescore, dense_top, maxsim_rescore, maxsim_top, offsets_of
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.embedding import Similarity
from llmquant.study.experiment import Codec, VectorForm

Engine = Literal["exact", "faiss", "usearch"]
_GRAPHS: dict[Engine, Callable[[Floats, Codec, Similarity], Graph]] = {"faiss": faiss_graph, "usearch": usearch_graph}


@dataclass(frozen=True)
class Index:
    """Documents, ready to be searched.

    Attributes:
        held: the coded vectors, or the graph of another engine with these vectors.
        offsets: ``(documents + 1,)`` the beginning and the end of each document's vectors.
        originals: the cut documents before pooling and coding; ``None`` without rescoring.
    """

    form: VectorForm
    similarity: Similarity
    held: Coded | Graph
    offsets: Ids
    originals: Embeddings | None

    @classmethod
    def build(
        cls, documents: Embeddings, form: VectorForm, similarity: Similarity, *, engine: Engine = "exact"
    ) -> Index:
        """Cut, pool and code documents.

        Args:
            documents: documents in full width, at unit length unless `similarity` is ``dot``. They are copied only if
                they change.
            engine: ``exact`` scores all documents; other engines are approximate, and vary slightly between runs.

        Raises:
            OptionError: if the vectors are narrower than ``form.dim``.
            UnsupportedError: if `engine` does not support this form, if single vectors should be pooled, or if there is
                no document.
            MissingDependencyError: if `engine` is not installed.
            SanityError: if a vector is not finite.
            PluginError: if documents have several vectors each but `similarity` is not ``maxsim``, or a document has no
                vector.
        """
        if form.pool > 1 and similarity != "maxsim":
            raise UnsupportedError(f"pool is {form.pool}, but these documents have one vector each", hint="Use pool 1.")
        if not len(documents):
            raise UnsupportedError("there is no document to search", hint="Pass at least one.")
        originals = _ready(documents, form.dim, similarity)
        kept = pooled(originals, form.pool)
        return cls(
            form,
            similarity,
            Coded.encode(kept.values, form.codec)
            if engine == "exact"
            else _GRAPHS[engine](kept.values, form.codec, similarity),
            offsets_of(kept),
            originals if form.rescore else None,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def bytes_per_document(self) -> float:
        """Return the mean size of a searched document in bytes: the codes, and an approximate engine's links.

        The size excludes the collection's scales (two numbers per dimension) and the originals for rescoring.
        """
        return (self.held.nbytes if isinstance(self.held, Graph) else self.held.codes.nbytes) / len(self)

    def search(self, queries: Embeddings, k: int) -> Hits:
        """Find each query's `k` best documents, or all documents if there are fewer.

        Args:
            queries: queries in full width.

        Returns:
            The best documents first; documents of equal score in their order in the collection.

        Raises:
            OptionError, SanityError, PluginError: as in `build`.
        """
        ready = _ready(queries, self.form.dim, self.similarity)
        k = min(k, len(self))
        if self.originals is None:
            return self._first(ready, k)
        if ready.width != self.originals.width:
            raise _widths(ready.width, self.originals.width)
        candidates = self._first(ready, min(k * self.form.rescore, len(self))).ids
        if self.similarity == "maxsim":
            return maxsim_rescore(ready, self.originals, candidates, k)
        return dense_rescore(ready.values, Coded.encode(self.originals.values, "float32"), candidates, k)

    def _first(self, queries: Embeddings, k: int) -> Hits:
        if isinstance(self.held, Graph):
            return self.held.search(queries.values, k)
        if queries.width != self.held.width:
            raise _widths(queries.width, self.held.width)
        if self.similarity == "maxsim":
            return maxsim_top(queries, self.held, self.offsets, k)
        return dense_top(queries.values, self.held, k)


def _ready(items: Embeddings, dim: int | None, similarity: Similarity) -> Embeddings:
    """Cut vectors to `dim` leading dimensions and normalize them unless lengths count; refuse invalid vectors."""
    values = items.values
    if similarity != "maxsim" and items.offsets is not None:
        raise PluginError(f"items have several vectors each, but the similarity {similarity} needs one")
    if items.offsets is not None and (empty := np.flatnonzero(np.diff(items.offsets) == 0)).size:
        raise PluginError(f"item {empty[0]} has no vector")
    if dim is not None and dim > items.width:
        raise OptionError(f"dim is {dim}, but the vectors have {items.width} dimensions", hint="Use a smaller dim.")
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise SanityError("a vector holds a number that is not finite")
    if dim is not None and dim < items.width:
        values = values[:, :dim].astype(np.float32)
        values = values if similarity == "dot" else unit(values)
    elif similarity != "maxsim":  # late interaction keeps float16, because it has many vectors
        values = values.astype(np.float32, copy=False)
    return Embeddings(values, items.offsets)


def _widths(queries: int, documents: int) -> PluginError:
    return PluginError(f"queries have {queries} dimensions and documents {documents}")
