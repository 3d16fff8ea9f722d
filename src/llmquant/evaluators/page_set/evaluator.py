"""The retrieval evaluator: the user's own pages and queries as a task of mteb, scored by mteb."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from llmquant.evaluators.mteb.run import evaluate_task
from llmquant.evaluators.page_set.options import LocalSetOptions
from llmquant.evaluators.page_set.pages import PageSet, list_pages, page_files
from llmquant.evaluators.page_set.queries import Question, read_questions
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.storage.text_files import read_text
from llmquant.study.experiment import hex_digest
from llmquant.study.run import Result

MAIN = "ndcg_at_5"


class LocalSet(Evaluator[LocalSetOptions]):
    """Search a local set of pages."""

    def fetch(self, ctx: Context) -> None:
        """Read pages and queries.

        Raises:
            RunError: if the worker does not have the files.
            RequestError: if pages or queries are wrong.
        """
        local_task(self.options, ctx)

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterator[Result]:
        """Yield one result, like the mteb evaluator.

        Raises:
            RunError: if the worker does not have the files, or no page can be encoded.
            RequestError: if pages or queries are wrong.
        """
        task, pages = local_task(self.options, ctx)
        sized = replace(subject, batch_tokens=self.options.batch_tokens)
        for result in evaluate_task(task, sized, ctx, engine=self.options.engine):
            yield replace(result, details={**result.details, "no_pages": list(pages.others)})


def local_task(options: LocalSetOptions, ctx: Context) -> tuple[AbsTaskRetrieval, PageSet]:
    """Read pages and queries, and make a task of them.

    Raises:
        RunError: if the worker does not have the files.
        RequestError: if pages or queries are wrong.
    """
    pages, wrong = list_pages(ctx.local(options.pages), options.pages.name, options.dpi)
    questions, mistaken = read_questions(ctx.local(options.queries), options.queries.name, pages.names())
    for error in (*wrong, *mistaken):
        raise error
    files = page_files(pages.pages, options.dpi, ctx.cache)
    revision = hex_digest([options.pages.digest, options.queries.digest, options.dpi])[:16]
    return build_task(options.pages.name, revision, _corpus(pages, files), questions), pages


def build_task(
    name: str, revision: str, corpus: datasets.Dataset, questions: Sequence[Question], *, main: str = MAIN
) -> AbsTaskRetrieval:
    """Make a task that mteb can run.

    Args:
        name: name of the folder or the PDF.
        revision: digest of the content of documents and queries.
        corpus: column ``id``, and ``image``, or ``text`` and optionally ``title``.
        main: the main metric.
    """
    images = "image" in corpus.column_names
    metadata = TaskMetadata(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).strip("-.")[:100] or "pages",
        description=f"The documents and queries of {name}.",
        dataset={"path": f"local/{Path(name).stem}", "revision": revision},
        type="DocumentUnderstanding" if images else "Retrieval",
        category="t2i" if images else "t2t",
        modalities=["text", "image"] if images else ["text"],
        eval_splits=["test"],
        eval_langs=["und-Zyyy"],  # undetermined, in an undetermined script
        main_score=main,
        is_public=False,
    )
    data = {
        "corpus": corpus,
        "queries": datasets.Dataset.from_dict(
            {"id": [question.id for question in questions], "text": [question.text for question in questions]}
        ),
        "relevant_docs": {question.id: dict(question.relevant) for question in questions},
        "top_ranked": None,
    }

    class Task(AbsTaskRetrieval):  # type: ignore[misc]  # mteb's types are not read
        abstask_prompt = ""

        def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
            self.dataset = {"default": {"test": dict(data)}}
            self.data_loaded = True

    Task.metadata = metadata
    return Task()


def _corpus(pages: PageSet, files: Mapping[str, Path]) -> datasets.Dataset:
    ids = [page.id for page in pages.pages]
    if pages.kind == "text":
        texts = [read_text(files[page], page) for page in ids]
        return datasets.Dataset.from_dict({"id": ids, "text": texts})
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"id": ids, "image": [str(files[page]) for page in ids]}, features=features)
