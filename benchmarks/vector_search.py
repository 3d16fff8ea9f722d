"""Measure exact search: time, memory, equality with brute force, codecs, and MaxSim compared with colpali-engine.

    python benchmarks/vector_search.py [--documents 100000] [--queries 1000] [--width 768] [--pages 300] [--pairs 5]

Prints Markdown, and exits with 1 when dense search is not equal to brute force, or takes 60 s or 2 GB. Vectors are
synthetic: clusters of twenty documents, queries around the same centres. MaxSim needs colpali-engine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import resource
import statistics
import sys
import time

import numpy as np

from llmquant.retrieval.index import Index
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.experiment import VectorForm

CODECS = ("float32", "float16", "int8", "int4", "binary")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rng, documents: int, queries: int, width: int):
    """Return documents and queries of unit length; dimensions differ in mean and spread, as in real models."""
    centres = rng.standard_normal((max(documents // 20, 1), width), dtype=np.float32)
    spread = rng.lognormal(0, 0.5, width).astype(np.float32)
    mean = rng.standard_normal(width).astype(np.float32) / 2

    def around(count: int):
        vectors = rng.standard_normal((count, width), dtype=np.float32)
        vectors += centres[rng.integers(0, len(centres), count)]
        vectors *= spread
        vectors += mean
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    return around(documents), around(queries)


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_mb() -> float:
    """Return the most resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def brute_force(queries, documents, k: int):
    """Score in float64, round to float32, sort all documents stably."""
    exact = documents.astype(np.float64)
    ids, scores = [], []
    for start in range(0, len(queries), 100):
        block = (queries[start : start + 100].astype(np.float64) @ exact.T).astype(np.float32)
        ids.append(np.argsort(-block, axis=1, kind="stable")[:, :k])
        scores.append(np.take_along_axis(block, ids[-1], axis=1))
    return np.concatenate(ids), np.concatenate(scores)


def dense(arguments) -> bool:
    rng = np.random.default_rng(0)
    documents, queries = clustered(rng, arguments.documents, arguments.queries, arguments.width)
    kept, asked, one = Embeddings(documents), Embeddings(queries), Embeddings(queries[:1])
    k = arguments.k
    rows = []
    for codec in CODECS:
        build_s, index = timed(lambda codec=codec: Index.build(kept, VectorForm(codec=codec), "cosine"))
        search_s, hits = timed(lambda index=index: index.search(asked, k))
        one_s = statistics.median(timed(lambda index=index: index.search(one, k))[0] for _ in range(5))
        if codec == "float32":
            peak, first_s, reference = peak_mb(), search_s, hits
        overlap = statistics.mean(
            len(set(a) & set(b)) / k for a, b in zip(hits.ids.tolist(), reference.ids.tolist(), strict=True)
        )
        rows.append((codec, index.bytes_per_document, build_s, search_s, one_s * 1000, overlap))
    both = Index.build(Embeddings(np.sign(documents)), VectorForm(codec="binary"), "cosine")
    hits = both.search(Embeddings(np.sign(queries)), k)
    overlap = statistics.mean(
        len(set(a) & set(b)) / k for a, b in zip(hits.ids.tolist(), reference.ids.tolist(), strict=True)
    )
    ids, scores = brute_force(queries, documents, k)
    equal = bool((ids == reference.ids).all() and (scores == reference.scores).all())
    print(f"## Dense: {len(documents):,} documents x {len(queries):,} queries, {arguments.width} dimensions, top {k}\n")
    print(
        f"- float32: {first_s:.1f} s; peak resident memory {peak:,.0f} MB, the documents' {documents.nbytes / 1e6:,.0f}"
    )
    print(f"  among them; ids and scores equal to brute force: {'yes' if equal else 'NO'}\n")
    print("| codec | bytes per document | build, s | search, s | one query, ms | of float32's top kept |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for codec, size, build_s, search_s, one_ms, same in rows:
        print(f"| {codec} | {size:,.0f} | {build_s:.1f} | {search_s:.1f} | {one_ms:.0f} | {same:.3f} |")
    print(f"| binary, queries too | {rows[-1][1]:,.0f} | | | | {overlap:.3f} |\n")
    return equal and first_s < 60 and peak < 2000


def colpali_scorer():
    """Return colpali-engine's scorer.

    The package itself is not imported, because it imports every model and torchvision.
    """
    found = importlib.util.find_spec("colpali_engine")
    if found is None:
        return None
    sys.modules["colpali_engine"] = importlib.util.module_from_spec(found)
    processing = importlib.import_module("colpali_engine.utils.processing_utils")
    return processing.BaseVisualRetrieverProcessor.score_multi_vector


def pages(rng, count: int, least: int, most: int, width: int = 128) -> Embeddings:
    return Embeddings.of(
        [unit(rng.standard_normal((n, width), dtype=np.float32)) for n in rng.integers(least, most, count)], width=width
    )


def maxsim(arguments) -> None:
    score = colpali_scorer()
    if score is None:
        print("MaxSim is not compared: colpali-engine is not installed.")
        return
    import torch

    from llmquant.loading.memory import peak_memory

    rng = np.random.default_rng(0)
    print("## MaxSim compared with colpali-engine's `score_multi_vector`, 128 dimensions\n")
    print("| pages | vectors per page | queries | llmquant, s | colpali-engine, s | ratio | llmquant MB | theirs, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count, least, most, asked in (
        (arguments.pages, 600, 1031, 40),
        (4 * arguments.pages, 600, 1031, 10),
        (arguments.pages, 600, 1031, 1),
        (10 * arguments.pages, 30, 100, 40),
    ):
        documents, queries = pages(rng, count, least, most), pages(rng, asked, 12, 30)
        lists = [[torch.from_numpy(items.item(i)) for i in range(len(items))] for items in (queries, documents)]
        index = Index.build(documents, VectorForm(), "maxsim")
        work = {
            "ours": lambda index=index, queries=queries: index.search(queries, 10),
            "theirs": lambda lists=lists: score(*lists, device="cpu").topk(10),
        }
        peaks = {}
        for name, run in work.items():
            with peak_memory("cpu") as peaks[name]:
                run()
        ratios, seconds = [], {name: [] for name in work}
        for pair in range(arguments.pairs):
            for name in list(work)[:: 1 if pair % 2 else -1]:
                seconds[name].append(timed(work[name])[0])
            ratios.append(seconds["ours"][-1] / seconds["theirs"][-1])
        mine, theirs = (statistics.median(seconds[name]) for name in ("ours", "theirs"))
        sizes = " | ".join(f"{(peaks[name].bytes or 0) / 1e6:,.0f}" for name in ("ours", "theirs"))
        ratio = statistics.median(ratios)
        print(f"| {count:,} | {least} to {most - 1} | {asked} | {mine:.2f} | {theirs:.2f} | {ratio:.2f} | {sizes} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    passed = dense(arguments)
    maxsim(arguments)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
