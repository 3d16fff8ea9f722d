"""The evaluator of BEIR folders: a text corpus, its queries and judgements as a task of mteb, scored by mteb."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import datasets
from mteb.abstasks import AbsTaskRetrieval

from llmquant.evaluators.beir.files import BeirSet, read_beir
from llmquant.evaluators.beir.options import BeirOptions
from llmquant.evaluators.mteb.run import evaluate_task
from llmquant.evaluators.page_set.evaluator import build_task
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.study.experiment import hex_digest
from llmquant.study.run import Measurement, Result

MAIN = "ndcg_at_10"


class Beir(Evaluator[BeirOptions]):
    """Search a corpus; a document is read as its title, a space and its text, as in BEIR and mteb."""

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterator[Result]:
        """Yield one result, like the mteb evaluator.

        Raises:
            RunError: if the worker does not have the folder, or no document can be encoded.
            RequestError: if the folder has a mistake.
        """
        task, found = beir_task(self.options, ctx)
        sized = replace(subject, batch_tokens=self.options.batch_tokens)
        more = {"own_ids_left_out": task.ignore_identical_ids, "queries_not_judged": found.other_queries}
        own = sum(query.id in found.corpus for query in found.questions) if task.ignore_identical_ids else 0
        for result in evaluate_task(task, sized, ctx, engine=self.options.engine):
            left_out = Measurement(result.task, "own_ids_left_out", float(own), headline=False)
            numbers = (*result.measurements, left_out) if own else result.measurements
            yield replace(result, measurements=numbers, details={**result.details, **more})


def beir_task(options: BeirOptions, ctx: Context) -> tuple[AbsTaskRetrieval, BeirSet]:
    """Read a folder, and make a task of it.

    Raises:
        RunError: if the worker does not have the folder.
        RequestError: if the folder has a mistake.
    """
    found, errors = read_beir(ctx.local(options.folder), options.folder.name, options.split)
    for error in errors:
        raise error
    titles, texts = zip(*found.corpus.values(), strict=True)
    corpus = datasets.Dataset.from_dict({"id": list(found.corpus), "title": list(titles), "text": list(texts)})
    revision = hex_digest([options.folder.digest, options.split])[:16]
    task = build_task(options.folder.name, revision, corpus, found.questions, main=MAIN)
    # A query that is itself a document must not find itself (ArguAna, Quora). BEIR always leaves out a document with
    # the query's id; here that happens only if no such document is an answer, as where both are merely numbered.
    task.ignore_identical_ids = all(query.relevant.get(query.id, 0) <= 0 for query in found.questions)
    return task, found
