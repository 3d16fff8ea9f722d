"""Indexing speed of an embedder: documents per second while a corpus is encoded, without the cache of vectors."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmquant.errors import ItemError, RunError, raise_all
from llmquant.evaluators.beir.files import CORPUS, read_corpus
from llmquant.evaluators.page_set.pages import list_pages, page_files
from llmquant.evaluators.speed.generation_steps import LEAST_REPEATS, undisturbed
from llmquant.evaluators.speed.indexing_options import DOCUMENTS, IndexingOptions
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.contents import contents_of
from llmquant.retrieval.encode_loop import Task, encode_each
from llmquant.retrieval.items import Item
from llmquant.storage.text_files import read_text
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.errors import RequestError
    from llmquant.plugins.context import Context
    from llmquant.retrieval.loaded import LoadedEmbedder

_TASK = "indexing"
# A4 at 150 dots per inch.
_PAGE, _TEXT_WORDS, _PAGE_LINES, _LINE_WORDS = (1240, 1754), 200, 50, 12
_WORDS = ("the", "pump", "of", "this", "engine", "is", "heavy", "and", "its", "oil", "must", "be", "changed", "twice")


class Indexing(Evaluator[IndexingOptions]):
    """Times passes over a sample of documents, in the loop and the batches with which every corpus is encoded.

    A pass decodes, prepares and encodes each document anew: neither cached vectors nor anything else that an embedder
    keeps is used. Reading files, rendering PDFs and building a search graph are not part of it.
    """

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterable[Result]:
        """Yield one result: the median over passes.

        Raises:
            RunError: if no document can be encoded.
            RequestError: if the documents are wrong.
        """
        options = self.options
        opened = subject.opened.uncached() if hasattr(subject.opened, "uncached") else subject.opened
        fresh = replace(subject, opened=opened, batch_tokens=options.batch_tokens)
        items = _items(options, fresh, ctx)
        contents = contents_of(items, "document", subject.embeds, strict=False)
        tasks = [Task(row, items[index]) for row, (index, _) in enumerate(contents.sources)]
        seconds: list[float] = []
        failed: dict[int, str] = {}
        started = time.perf_counter()
        with undisturbed():
            for number in range(options.warmup + options.repeats):
                if len(seconds) >= LEAST_REPEATS and time.perf_counter() - started > options.budget_s:
                    break
                begun = time.perf_counter()
                for task, result in encode_each(fresh, tasks, "document", dtype=np.float32):
                    if isinstance(result, ItemError):
                        failed[task.row] = str(result)
                if number >= options.warmup:
                    seconds.append(time.perf_counter() - begun)
                    ctx.progress(len(seconds), options.repeats)
        skipped: list[Json] = [*contents.skipped.values(), *failed.values()]
        encoded = len(tasks) - len(failed)
        if not encoded:
            raise RunError(f"indexing: no document could be encoded: {skipped[0]}")
        rate = encoded / float(np.median(seconds))
        rates = [("documents_per_s", rate, "documents/s")]
        if options.dollars_per_hour is not None:
            rates.append(("documents_per_dollar", 3600 * rate / options.dollars_per_hour, "documents/dollar"))
        numbers = [
            Measurement(_TASK, metric, value, unit, higher_is_better=True, n=len(seconds), at={"documents": encoded})
            for metric, value, unit in rates
        ]
        kind = "text" if tasks[0].item.image is None else "image"
        details: dict[str, Json] = {"kind": kind, "seconds": [round(each, 6) for each in seconds], "skipped": skipped}
        yield Result(_TASK, numbers, details=details)


def _items(options: IndexingOptions, subject: LoadedEmbedder, ctx: Context) -> list[Item]:
    """Return the documents of a pass: drawn from the corpus, or generated."""
    rng = np.random.default_rng(ctx.seed)
    count = options.documents or DOCUMENTS[subject.device]
    if options.data is None:
        if "image" in subject.embeds.modalities:
            return [Item(image=_page(rng), name=f"page {number}") for number in range(count)]
        return [Item(" ".join(rng.choice(_WORDS, _TEXT_WORDS)), name=f"text {number}") for number in range(count)]
    path, name = ctx.local(options.data), options.data.name
    errors: list[RequestError] = []
    if (path / CORPUS).is_file():
        documents = list(read_corpus(path, name, errors).items())
        raise_all(errors)
        drawn = [documents[place] for place in rng.permutation(len(documents))[:count]]
        return [Item(f"{title} {text}".strip(), name=document) for document, (title, text) in drawn]
    found, errors = list_pages(path, name, options.dpi)
    raise_all(errors)
    pages = [found.pages[place] for place in rng.permutation(len(found.pages))[:count]]
    files = page_files(pages, options.dpi, ctx.cache)
    if found.kind == "text":
        return [Item(read_text(files[page.id], page.id), name=page.id) for page in pages]
    return [Item(image=files[page.id].read_bytes(), name=page.id) for page in pages]


def _page(rng: np.random.Generator) -> bytes:
    """Draw a page of text, as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont  # only needed for embedders of images

    image = Image.new("RGB", _PAGE, "white")
    lines = [" ".join(rng.choice(_WORDS, _LINE_WORDS)) for _ in range(_PAGE_LINES)]
    ImageDraw.Draw(image).multiline_text((100, 100), "\n".join(lines), "black", ImageFont.load_default(20), spacing=10)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
