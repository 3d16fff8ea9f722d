"""The drift evaluator: compares a variant's vectors and rankings with the baseline's on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from llmquant.errors import RunError
from llmquant.evaluators.beir.evaluator import beir_task
from llmquant.evaluators.beir.options import BeirOptions
from llmquant.evaluators.drift.measures import cosines, overlap, places, rank_flips
from llmquant.evaluators.drift.options import DriftOptions
from llmquant.evaluators.mteb.as_mteb import for_task
from llmquant.evaluators.mteb.items import Rows
from llmquant.evaluators.mteb.run import fetch_task, searched
from llmquant.evaluators.page_set.evaluator import local_task
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.encode import encode_some
from llmquant.retrieval.index import Index
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.run import REFERENCE_FILE, Measurement, Result, Sample

# Number of ranks held at a time.
_RANKED = 1 << 24


@dataclass(frozen=True)
class _Searched:
    """Vectors and rankings of one subset.

    Attributes:
        subset: its name, after that of its split if the task has several splits.
        kept: numbers of the encoded queries.
        encoded: vectors of these queries.
        documents: vectors of the sampled documents.
        results: ``(queries, k)`` the best documents, by their place in the index.
        could: numbers of the encoded documents, by their place in the index.
    """

    subset: str
    queries: Rows
    kept: NDArray[np.int64]
    encoded: Embeddings
    index: Index
    documents: Embeddings
    results: NDArray[np.int64]
    could: NDArray[np.int64]


class Drift(Evaluator[DriftOptions]):
    """Compares a variant with the baseline, whose vectors and rankings are in its run's reference file.

    ``cosine`` compares the documents' vectors in full width, before they are cut or coded; ``overlap`` is the share of
    the baseline's best results that the variant finds too; ``rank_flips`` is the share of pairs of these results in
    reverse order, ``(1 - Kendall's tau) / 2``; ``top_1_changed`` is the share of queries with another best document.
    """

    def fetch(self, ctx: Context) -> None:
        """Fetch the task's data, or read pages and queries.

        Raises:
            RunError: if the data is unavailable.
            RequestError: if pages or queries are wrong.
        """
        fetch_task(self._task(ctx))

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterable[Result]:
        """Yield one result.

        Raises:
            RunError: if the data is unavailable, or the baseline used other data.
        """
        task = self._task(ctx)
        subsets = list(self._search(task, subject, ctx))
        if ctx.reference is None:
            _write(subsets, ctx.files / REFERENCE_FILE)
            reference = [(found.documents, found.results) for found in subsets]
        else:
            reference = _read(ctx.reference, subsets)
        yield self._result(task.metadata.name, subsets, reference)

    def _task(self, ctx: Context) -> AbsTaskRetrieval:
        if isinstance(self.options.data, str):
            return mteb.get_task(self.options.data)
        local = self.options.local
        return beir_task(local, ctx)[0] if isinstance(local, BeirOptions) else local_task(local, ctx)[0]

    def _search(self, task: AbsTaskRetrieval, subject: LoadedEmbedder, ctx: Context) -> Iterator[_Searched]:
        for (split, subset), corpus, queries in searched(task, ctx.documents.limit):
            about, progress = task.metadata, ctx.progress
            documents = encode_some(for_task(subject, about, "document"), corpus, "document", progress=progress)
            asked = encode_some(for_task(subject, about, "query"), queries, "query", progress=progress)
            if not len(documents.kept) or not len(asked.kept):
                raise RunError(
                    f"{task.metadata.name}: no {'query' if len(documents.kept) else 'document'} can be encoded"
                )
            index = Index.build(documents.embeddings, subject.vectors, subject.embeds.similarity)
            drawn = np.random.default_rng(ctx.seed).permutation(len(documents.kept))[: self.options.vectors]
            yield _Searched(
                f"{split} {subset}" if len(task.eval_splits) > 1 else subset,
                queries,
                asked.kept,
                asked.embeddings,
                index,
                documents.embeddings.select(np.sort(drawn)),
                index.search(asked.embeddings, self.options.results).ids,
                documents.kept,
            )

    def _result(
        self, task: str, subsets: Sequence[_Searched], reference: Sequence[tuple[Embeddings, NDArray[np.int64]]]
    ) -> Result:
        """Compare each subset; every query counts once."""
        samples: list[Sample] = []
        alike: list[NDArray[np.float64]] = []
        k = min(results.shape[1] for _, results in reference)
        metrics = (f"overlap_at_{k}", f"rank_flips_at_{k}", "top_1_changed")
        for found, (documents, results) in zip(subsets, reference, strict=True):
            alike.append(cosines(documents, found.documents))
            best, mine = results[:, :k], found.results[:, :k]
            flips = np.concatenate(list(_flips(found, best)))
            changed = best[:, 0] != mine[:, 0]
            scores = np.stack([overlap(best, mine), flips, changed], axis=1).tolist()
            for number, values in zip(found.kept.tolist(), scores, strict=True):
                document, key = f"{found.subset} {found.queries.ids[number]}", found.queries[number].key.hex()
                samples.append(Sample(document, key, dict(zip(metrics, values, strict=True))))
        measurements = [
            Measurement(
                task,
                metric,
                float(np.mean(values)),
                higher_is_better=metric.startswith("overlap"),
                stderr=float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None,
                n=len(values),
            )
            for metric in metrics
            for values in [[sample.scores[metric] for sample in samples]]
        ]
        cosine = np.concatenate(alike)
        if not np.isnan(cosine).any():
            for metric, value in (("cosine", cosine.mean()), ("cosine_min", cosine.min())):
                measurements.append(
                    Measurement(
                        task, metric, float(value), higher_is_better=True, n=len(cosine), headline=metric == "cosine"
                    )
                )
        return Result(task, measurements, samples, {"results": k, "documents_compared": len(cosine)})


def _flips(found: _Searched, baseline: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Rank all documents by the variant, some queries at a time, and find the baseline's results in the ranking."""
    total = len(found.index)
    step = max(1, _RANKED // total)
    for start in range(0, len(baseline), step):
        some = np.arange(start, min(start + step, len(baseline)))
        yield rank_flips(places(found.index.search(found.encoded.select(some), total).ids, baseline[some]))


def _write(subsets: Sequence[_Searched], path: Path) -> None:
    tensors = {}
    for number, found in enumerate(subsets):
        tensors[f"{number}.values"] = np.ascontiguousarray(found.documents.values)
        tensors[f"{number}.results"] = found.results
        tensors[f"{number}.items"] = np.concatenate([found.could, found.kept])
        if found.documents.offsets is not None:
            tensors[f"{number}.offsets"] = found.documents.offsets
    save_file(tensors, path)


def _read(path: Path, subsets: Sequence[_Searched]) -> list[tuple[Embeddings, NDArray[np.int64]]]:
    """Read the baseline's reference file.

    Raises:
        RunError: if the baseline could encode other documents or queries.
    """
    tensors = load_file(path)
    for number, subset in enumerate(subsets):
        if not np.array_equal(tensors.get(f"{number}.items"), np.concatenate([subset.could, subset.kept])):
            raise RunError(f"the baseline could encode other documents or queries of {subset.subset!r}")
    return [
        (Embeddings(tensors[f"{n}.values"], tensors.get(f"{n}.offsets")), tensors[f"{n}.results"])
        for n in range(len(subsets))
    ]
