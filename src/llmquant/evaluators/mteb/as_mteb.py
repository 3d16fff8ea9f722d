"""An embedder as a model for ``mteb.evaluate``: each item is encoded once, and the stored vectors are searched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
from mteb.types import PromptType
from numpy.typing import NDArray

from llmquant.errors import OptionError, RunError, UnsupportedError
from llmquant.evaluators.mteb.items import Rows, batched_items
from llmquant.retrieval.codecs import Coded
from llmquant.retrieval.encode import Encoded, encode_some
from llmquant.retrieval.index import Engine, Index
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.retrieval.vectors import scale_to_unit
from llmquant.study.embedding import Role
from llmquant.study.experiment import VectorForm, digest_of

Progress = Callable[[int, int], None]

_SIMILARITIES = {
    "cosine": ScoringFunction.COSINE,
    "dot": ScoringFunction.DOT_PRODUCT,
    "maxsim": ScoringFunction.MAX_SIM,
}
# Number of scores held at a time when all documents are ranked to select a few of them.
_RANKED = 1 << 24
# Number of documents whose tokens are counted, which takes less than a second.
_CUT_SAMPLE = 1000


@dataclass(frozen=True)
class Indexed:
    """The record of one subset's documents and queries.

    Attributes:
        bytes_per_document: mean bytes per document in the index.
        skipped: why a document could not be encoded, by its id.
        skipped_queries: why a query could not be encoded, by its id; such a query finds nothing.
        cut: share of the documents whose texts are longer than the embedder reads, of a sample.
    """

    split: str
    subset: str
    documents: int
    bytes_per_document: float
    skipped: Mapping[str, str]
    skipped_queries: Mapping[str, str]
    cut: float = 0.0


class MtebModel:
    """An embedder with mteb's model interface: it searches for retrieval tasks, and encodes for all other tasks.

    Args:
        embedder: a loaded embedder.
        meta: its description in mteb's result files.
        progress: called with (done, total) while items are encoded.
        engine: the search engine.

    Attributes:
        indexed: a record of each subset that was searched.
        skipped: why an item outside a search could not be encoded; such an item has a vector of zeros.
    """

    def __init__(self, embedder: LoadedEmbedder, meta: ModelMeta, progress: Progress, engine: Engine = "exact") -> None:
        self.mteb_model_meta = meta
        self._engine = engine
        self.indexed: list[Indexed] = []
        self.skipped: list[str] = []
        self._embedder = embedder
        self._progress = progress
        self._ids: NDArray[np.object_] = np.empty(0, object)
        self._index: Index | None = None

    def index(
        self,
        corpus: datasets.Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],  # Any: mteb's own
        num_proc: int | None = None,
    ) -> None:
        """Encode the corpus and index it in the embedder's vector form; mteb calls this method.

        Raises:
            RunError: if no document can be encoded.
        """
        rows = Rows(corpus, task_metadata, PromptType.document)
        found = self._encode(rows, task_metadata, "document")
        if not len(found.kept):
            reason = next(iter(found.skipped.values()), "the corpus is empty")
            raise RunError(f"task {task_metadata.name!r}: no document could be encoded: {reason}")
        self._ids = np.array(rows.ids, object)[found.kept]
        form, similarity = self._embedder.vectors, self._embedder.embeds.similarity
        self._index = Index.build(found.embeddings, form, similarity, engine=self._engine)
        size, cut = self._index.bytes_per_document, self._cut(rows)
        self.indexed.append(Indexed(hf_split, hf_subset, len(rows), size, _named(rows, found), {}, cut))

    def search(
        self,
        queries: datasets.Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],  # Any: mteb's own
        top_ranked: Mapping[str, list[str]] | None = None,
        num_proc: int | None = None,
    ) -> dict[str, dict[str, float]]:
        """Find the `top_k` best documents of each query, or rank those of `top_ranked`; mteb calls this method.

        Returns:
            Scores by query and document. A query that cannot be encoded finds no document and so scores 0.
        """
        index, self._index = self._index, None
        if index is None:
            raise RunError("mteb searched before it indexed a corpus")
        if top_ranked is not None and self._engine != "exact":
            raise UnsupportedError(f"{self._engine} cannot rank a given list of documents", hint="Use engine=exact.")
        rows = Rows(queries, task_metadata, PromptType.query)
        encoded = self._encode(rows, task_metadata, "query")
        self.indexed[-1] = replace(self.indexed[-1], skipped_queries=_named(rows, encoded))
        found: dict[str, dict[str, float]] = {query: {} for query in rows.ids}
        count = min(top_k, len(self._ids)) if top_ranked is None else len(self._ids)
        step = max(1, _RANKED // count)
        for start in range(0, len(encoded.kept), step):
            some = np.arange(start, min(start + step, len(encoded.kept)))
            hits = index.search(encoded.embeddings.select(some), count)
            for row, ids, scores in zip(encoded.kept[some], hits.ids, hits.scores, strict=True):
                query = rows.ids[row]
                reached = ids >= 0  # a graph may find fewer documents than requested
                ranked = list(zip(self._ids[ids[reached]], scores[reached].tolist(), strict=True))
                if top_ranked is not None:
                    wanted = set(top_ranked.get(query, ()))
                    ranked = [pair for pair in ranked if pair[0] in wanted][:top_k]
                # A document that a corpus holds twice keeps its best score.
                found[query] = dict(ranked) | dict(reversed(ranked))
        return found

    def encode(
        self,
        inputs: Any,  # Any: mteb's DataLoader
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **encode_kwargs: Any,  # Any: mteb's own; its batch size is ignored
    ) -> NDArray[np.float32]:
        """Encode texts and images for a task without search; mteb calls this method.

        Without a side from mteb, an embedder with ``for_task`` applies no role; all others encode texts as queries and
        images as documents, so both sides of a symmetric task are encoded in the same way.

        Returns:
            Vectors in the study's vector form: cut, coded and decoded again.

        Raises:
            UnsupportedError: for late interaction.
        """
        form, similarity = self._embedder.vectors, self._embedder.embeds.similarity
        if similarity == "maxsim":
            raise UnsupportedError(
                f"task {task_metadata.name!r} needs one vector per item; this embedder returns several"
            )
        items = batched_items(inputs)
        vectors: NDArray[np.float32] = np.zeros((len(items), self._embedder.embeds.width), np.float32)
        for role in ("query", "document"):
            mine = np.array([n for n, item in enumerate(items) if _role(item.image, prompt_type) == role], np.int64)
            if mine.size:
                found = self._encode([items[n] for n in mine], task_metadata, role, sides=prompt_type is not None)
                vectors[mine[found.kept]] = found.embeddings.values
                self.skipped += found.skipped.values()
        if form.dim is not None:
            vectors = vectors[:, : form.dim]
            if similarity == "cosine":
                scale_to_unit(vectors)
        return Coded.encode(vectors, form.codec).decode(slice(None))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:  # Any: mteb's arrays
        """Compare all vectors of one side with all vectors of the other; mteb calls this method."""
        return (dot_score if self._embedder.embeds.similarity == "dot" else cos_sim)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:  # Any: mteb's arrays
        """Compare pair by pair; mteb calls this method."""
        pairwise = pairwise_dot_score if self._embedder.embeds.similarity == "dot" else pairwise_cos_sim
        return pairwise(embeddings1, embeddings2)

    def _cut(self, rows: Rows) -> float:
        opened = self._embedder.opened
        if not hasattr(opened, "too_long"):
            return 0.0
        sample = np.random.default_rng(0).permutation(len(rows))[:_CUT_SAMPLE]
        return float(np.mean([opened.too_long(rows[number].text or "", "document") for number in sample.tolist()]))

    def _encode(
        self,
        items: Any,  # Any: a sequence of Item that may be lazy
        task: TaskMetadata,
        role: Role,
        *,
        sides: bool = True,
    ) -> Encoded:
        embedder = for_task(self._embedder, task, role, sides=sides)
        return encode_some(embedder, items, role, progress=self._progress)


def for_task(embedder: LoadedEmbedder, task: TaskMetadata, role: Role, *, sides: bool = True) -> LoadedEmbedder:
    """Return an embedder with its prompts for a task, if it has any.

    Args:
        sides: whether the task has queries and documents; if not, vectors may keep their lengths.
    """
    if not hasattr(embedder.opened, "for_task"):
        return embedder
    opened, key = embedder.opened.for_task(task, role if sides else None)
    if not key:
        return embedder
    digest = digest_of({"embedder": embedder.fingerprint, "task": key})
    embeds = embedder.embeds if sides else replace(embedder.embeds, similarity="dot")
    return replace(embedder, opened=opened, fingerprint=digest, embeds=embeds)


def as_mteb(
    embedder: LoadedEmbedder,
    *,
    name: str | None = None,
    queries: int | None = None,
    engine: Engine = "exact",
    progress: Progress = lambda done, total: None,
) -> MtebModel:
    """Return an embedder as a model for ``mteb.evaluate(model, tasks)``.

    Args:
        name: the model's name in mteb's result files, as ``organization/model``; ``None`` means the Hub id, or
            ``local/`` and the local name.
        queries: the limit on queries per task, which the result files record.
        engine: the search engine: ``exact``, or the graphs of ``faiss`` and ``usearch``.
        progress: called with (done, total) while items are encoded.
    """
    if not isinstance(embedder, LoadedEmbedder):
        raise OptionError(f"embedder is {embedder!r}", hint="Give what lq.load_embedder returned.")
    info, embeds, form = embedder.info, embedder.embeds, embedder.vectors
    made: dict[str, str | int] = {}
    if embedder.applied.method != "none":
        made["quantization"] = f"{embedder.applied.method} {embedder.applied.code}"
    if form != VectorForm():
        made["vectors"] = str(form)
    if queries is not None:
        made["queries"] = queries
    if engine != "exact":
        made["engine"] = engine
    local = re.sub(r"[^A-Za-z0-9.=_-]+", "-", info.use().name).strip("-")
    # mteb requires every field, known or not.
    unknown = {field: None for field, described in ModelMeta.model_fields.items() if described.is_required()}
    known = {
        "name": name or info.repo or f"local/{local or 'model'}",
        "revision": info.commit or info.digest.rpartition(":")[2][:16],
        "n_parameters": info.parameters or None,
        "embed_dim": form.dim or embeds.width,
        "framework": ["PyTorch"],
        "similarity_fn_name": _SIMILARITIES[embeds.similarity],
        "modalities": list(embeds.modalities),
        "model_type": ["late-interaction" if embeds.similarity == "maxsim" else "dense"],
        "experiment_kwargs": made or None,
    }
    return MtebModel(embedder, ModelMeta(**{**unknown, **known}), progress, engine)


def _role(image: bytes | None, side: PromptType | None) -> Role:
    if side is None:
        return "query" if image is None else "document"
    return "query" if side == PromptType.query else "document"


def _named(rows: Rows, found: Encoded) -> dict[str, str]:
    return {rows.ids[index]: reason for index, reason in found.skipped.items()}
