"""Query latency of an embedder: encoding one query, and searching a collection in the study's vector form."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from llmquant.evaluators.speed.options import DOCUMENTS, QueryLatencyOptions
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.index import Index
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.plugins.context import Context
    from llmquant.retrieval.loaded import LoadedEmbedder

_TASK = "query_latency"
_QUERY = "how much did revenue grow in the third quarter of year {}"


class QueryLatency(Evaluator[QueryLatencyOptions]):
    """Times one query at a time, without the cache of embeddings.

    The documents are random unit vectors: exact search takes the same time for random and for real vectors.
    """

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterable[Result]:
        """Yield one result: medians and 95th percentiles in milliseconds."""
        options, embeds = self.options, subject.embeds
        late, total = embeds.similarity == "maxsim", 2 * options.repeats
        rng = np.random.default_rng(ctx.seed)
        documents = options.documents or DOCUMENTS[embeds.similarity]
        held = _random(rng, documents, options.vectors if late else None, embeds.width)
        index = Index.build(held, subject.vectors, embeds.similarity, engine=options.engine)

        def encode(number: int) -> None:
            subject.opened.embed([subject.opened.prepare(_QUERY.format(number), None, "query")], "query")

        queries = [_random(rng, 1, 20 if late else None, embeds.width) for _ in range(options.warmup + options.repeats)]
        encoding = self._time(encode, lambda done: ctx.progress(done, total))
        searching = self._time(
            lambda number: index.search(queries[number], min(options.results, documents)),
            lambda done: ctx.progress(options.repeats + done, total),
        )
        collection = {"documents": documents}
        numbers = [
            Measurement(
                _TASK, metric + suffix, float(np.percentile(ms, q)), "ms", higher_is_better=False, n=len(ms), at=at
            )
            for metric, ms, at in (("query_encode_ms", encoding, {}), ("query_search_ms", searching, collection))
            for suffix, q in (("", 50), ("_p95", 95))
        ]
        yield Result(_TASK, numbers, details={"vectors_a_document": options.vectors if late else 1})

    def _time(self, step: Callable[[int], object], done: Callable[[int], None]) -> list[float]:
        """Return the milliseconds of each measured step."""
        found = []
        for number in range(self.options.warmup + self.options.repeats):
            started = time.perf_counter()
            step(number)
            if number >= self.options.warmup:
                found.append(1000 * (time.perf_counter() - started))
                done(len(found))
        return found


def _random(rng: np.random.Generator, items: int, vectors: int | None, width: int) -> Embeddings:
    """Draw unit vectors: one per item, or `vectors` per item."""
    drawn = rng.standard_normal((items * (vectors or 1), width), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return Embeddings(drawn, None if vectors is None else np.arange(items + 1, dtype=np.int64) * vectors)
