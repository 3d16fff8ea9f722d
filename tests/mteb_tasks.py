"""Small mteb tasks that need no network, and a model that is only what mteb asks of an encoder."""

from __future__ import annotations

from typing import ClassVar

import datasets
import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, max_sim, pairwise_cos_sim

from embedding import page

LANGUAGES = {name: [f"{name}-Latn"] for name in ("fra", "spa", "eng", "deu", "ita", "por")}
COLOURS = ("white", "lightblue", "wheat", "pink", "palegreen", "lavender", "ivory", "plum")
WORDS = ("ledger", "barley", "kettle", "harbour", "engine", "lantern", "orchard", "mitten", "gravel", "saddle")
WORDS += ("violin", "window")


def metadata(name, category, *, main="ndcg_at_5", languages=("eng-Latn",), kind="Retrieval"):
    return TaskMetadata(
        dataset={"path": "none/none", "revision": "1"},
        name=name,
        description="A test.",
        type=kind,
        category=category,
        modalities=["text", "image"] if "i" in category else ["text"],
        eval_splits=["test"],
        eval_langs=languages if isinstance(languages, dict) else list(languages),
        main_score=main,
    )


class Ready(AbsTaskRetrieval):
    """A retrieval task whose data is in `made`: split data by subset."""

    made: ClassVar = {}
    k_values = (1, 5, 10, 1000)  # mteb takes most of a second for its own seven

    def load_data(self, num_proc=None, **kwargs):
        self.dataset = {subset: {"test": dict(data)} for subset, data in self.made.items()}
        self.data_loaded = True


def task(name, category, made, **about):
    found = metadata(name, category, **about)
    return type(name, (Ready,), {"metadata": found, "made": made, "abstask_prompt": ""})()


def split_data(corpus, queries, relevant, top_ranked=None):
    return {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": top_ranked}


def pages(count=8, *, images=None):
    """Return a corpus of page images, of which all differ."""
    images = images or [page(WORDS[n] * 3, colour=COLOURS[n % len(COLOURS)]) for n in range(count)]
    rows = {"id": [f"p{n}" for n in range(len(images))], "image": [{"bytes": one, "path": None} for one in images]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def texts(count=12):
    rows = {
        "id": [f"d{n}" for n in range(count)],
        "title": [WORDS[n] for n in range(count)],
        "text": [f"the {WORDS[n]} stood beside the {WORDS[(n + 5) % count]} " * (1 + n % 3) for n in range(count)],
    }
    return datasets.Dataset.from_dict(rows)


def questions(count=10, *, prefix="q", word="where"):
    """Return queries, with two relevant documents each; the grade of the first is 2."""
    rows = {
        "id": [f"{prefix}{n}" for n in range(count)],
        "text": [f"{word} is the {WORDS[n]} {WORDS[(n + 3) % 12]}" for n in range(count)],
    }
    return datasets.Dataset.from_dict(rows)


def judged(queries, documents):
    """Grade two documents for each query; no two queries of the first eight have the same."""
    ids = list(documents["id"])
    return {
        query: {ids[n % len(ids)]: 2, ids[(3 * n + 1 + n // len(ids)) % len(ids)]: 1}
        for n, query in enumerate(queries["id"])
    }


def page_task(name="Pages", **about):
    corpus, queries = pages(), questions()
    return task(name, "t2i", {"default": split_data(corpus, queries, judged(queries, corpus))}, **about)


def text_task(name="Texts", **about):
    corpus, queries = texts(), questions()
    return task(name, "t2t", {"default": split_data(corpus, queries, judged(queries, corpus))}, **about)


def six_languages():
    """Return a task whose six subsets share their pages and ask the same questions."""
    made = {}
    for language in LANGUAGES:
        corpus, queries = pages(), questions(8, prefix=f"{language}-", word=language)
        made[language] = split_data(corpus, queries, judged(queries, corpus))
    return task("Six", "t2i", made, languages=LANGUAGES)


class Pairs(AbsTaskSTS):
    metadata = metadata("Pairs", "t2t", main="cosine_spearman", kind="STS")
    min_score, max_score = 0, 5

    def load_data(self, num_proc=None, **kwargs):
        rows = {
            "sentence1": [f"{WORDS[n]} {WORDS[(n + 1) % 12]}" for n in range(10)],
            "sentence2": [f"{WORDS[n]} {WORDS[(n + 1 + n % 3) % 12]}" for n in range(10)],
            "score": [5.0 - n % 3 for n in range(10)],
        }
        self.dataset = {"default": datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)})}
        self.data_loaded = True


class PlainEncoder:
    """An embedder as mteb's own wrappers know it: batches in, vectors out, nothing kept."""

    def __init__(self, subject):
        self.subject, self.encoded = subject, 0
        self.mteb_model_meta = ModelMeta.create_empty().model_copy(
            update={"name": "test/plain", "revision": "1", "modalities": ["text", "image"]}
        )

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        role = "query" if prompt_type is None or prompt_type.value == "query" else "document"
        found = []
        for batch in inputs:
            several = batch["image"] if "image" in batch else batch["text"]
            for one in several:
                text, image = (None, one.convert("RGB")) if "image" in batch else (one, None)
                prepared = self.subject.opened.prepare(text, image, role)
                found += self.subject.opened.embed([prepared], role)
        self.encoded += len(found)
        return found if self.subject.embeds.similarity == "maxsim" else np.stack(found)

    def similarity(self, one, other):
        return (max_sim if self.subject.embeds.similarity == "maxsim" else cos_sim)(one, other)

    def similarity_pairwise(self, one, other):
        return pairwise_cos_sim(one, other)


def directly(subject, made):
    """Run a task through mteb alone; return its result and how many items it encoded."""
    model = PlainEncoder(subject)
    found = mteb.evaluate(model, made, cache=None, co2_tracker=False, show_progress_bar=False)
    return found.task_results[0], model.encoded
