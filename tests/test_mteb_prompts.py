"""Every task of mteb is encoded with the prompts that mteb itself gives a model, and scored on the same vectors."""

from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest

pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")

import mteb
from mteb.abstasks import AbsTaskClassification
from sentence_transformers import SentenceTransformer

from embedding import build_subject
from llmquant.embedders.mteb_model.embedder import OpenMtebModel
from llmquant.embedders.sentence_transformers.embedder import OpenSentenceTransformers
from llmquant.evaluators.mteb.run import evaluate_task
from llmquant.study.embedding import EmbedderInfo
from mteb_tasks import WORDS, Pairs, judged, metadata, questions, split_data, task, text_task, texts
from tiny_sentence_transformer import save_tiny_sentence_transformer

ROLES = {"query": "where is the ", "document": "a passage on "}
# As EmbeddingGemma has them: by type of task, and by type and role.
TYPES = {
    **ROLES,
    "STS": "the same as ",
    "Classification": "of the kind ",
    "Retrieval-query": "which ",
    "Reranking": "a ",
}


class DifferentPairs(Pairs):
    """Pairs of which no two are alike to the last digits, so that ranks do not depend on the batch."""

    metadata = metadata("DifferentPairs", "t2t", main="cosine_spearman", kind="STS")

    def load_data(self, num_proc=None, **kwargs):
        super().load_data()
        rows = self.dataset["default"]["test"].map(
            lambda row, n: {"sentence2": f"{WORDS[n]} gravel"}, with_indices=True
        )
        self.dataset["default"]["test"] = rows


class Kinds(AbsTaskClassification):
    metadata = metadata("Kinds", "t2c", main="accuracy", kind="Classification")
    n_experiments, samples_per_label = 2, 3

    def load_data(self, num_proc=None, **kwargs):
        rng = np.random.default_rng(0)
        rows = {split: [n % 3 for n in range(24)] for split in ("train", "test")}
        made = {
            split: {"text": [" ".join([WORDS[label], *rng.choice(WORDS, 4)]) for label in labels], "label": labels}
            for split, labels in rows.items()
        }
        self.dataset = datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split, rows in made.items()})
        self.data_loaded = True


def reranking():
    corpus, queries = texts(), questions(6)
    candidates = {query: [f"d{(3 * n + m) % 12}" for m in range(6)] for n, query in enumerate(queries["id"])}
    made = split_data(corpus, queries, judged(queries, corpus), candidates)
    return task("Reranked", "t2t", {"default": made}, kind="Reranking", main="map_at_10")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: SentenceTransformer(
            str(save_tiny_sentence_transformer(folder / name, prompts=prompts, similarity=similarity)), device="cpu"
        )
        for name, prompts, similarity in (("roles", ROLES, "cosine"), ("types", TYPES, "cosine"), ("dot", ROLES, "dot"))
    }


def subject_of(tmp_path, opened, *, similarity="cosine"):
    embeds = EmbedderInfo(32, (32,), ("text",), similarity, "sum")
    return replace(build_subject(tmp_path), opened=opened, embeds=embeds)


@pytest.mark.parametrize("kind", [text_task, DifferentPairs, Kinds, reranking])
@pytest.mark.parametrize("name", ["roles", "types", "dot"])
def test_every_value_is_that_of_mteb(tmp_path, context, models, name, kind):
    """With prompts per role, per type of task, and vectors that keep their lengths, all metrics equal stock mteb's."""
    model = models[name]
    similarity = model.similarity_fn_name
    opened = OpenSentenceTransformers(model, dict.fromkeys(ROLES), normalized=similarity == "cosine")
    (result,) = evaluate_task(kind(), subject_of(tmp_path, opened, similarity=similarity), context())
    stock = mteb.evaluate(model, kind(), cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
    (scores,) = stock.scores["test"]
    found = {m.metric: m.value for m in result.measurements if m.metric in scores}
    assert len(found) > 5
    # The vectors of a batch differ in the last digits; mteb has no average precision of three labels.
    assert found == pytest.approx({metric: scores[metric] for metric in found}, abs=1e-5, nan_ok=True)


def test_a_prompt_that_was_given_comes_before_those_of_tasks(tmp_path, models):
    """The option ``query_prompt`` holds for the queries of every task, and for nothing else."""
    opened = OpenSentenceTransformers(models["types"], {"query": "my ", "document": None}, normalized=True)
    assert opened.for_task(text_task().metadata, "query") == (opened, "")
    assert opened.for_task(Pairs.metadata, None)[1] == "None STS"


def test_models_of_mteb_are_told_the_task(tmp_path, context, models):
    """A model that mteb opens itself is given each task, so that its own code chooses the prompt."""
    stock = mteb.get_model_meta("sentence-transformers/all-MiniLM-L6-v2")
    wrapped = mteb.models.SentenceTransformerEncoderWrapper(models["types"], stock.revision)
    (result,) = evaluate_task(
        DifferentPairs(), subject_of(tmp_path, OpenMtebModel(wrapped, models["types"], normalized=True)), context()
    )
    theirs = mteb.evaluate(models["types"], DifferentPairs(), cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.measurements[0].value == pytest.approx(theirs.task_results[0].get_score(), abs=1e-5)


def test_documents_longer_than_the_model_reads_are_counted(tmp_path, context, models):
    """With the document's prompt, of which the model reads 64 tokens in all; the score is that of the cut texts."""
    opened = OpenSentenceTransformers(models["roles"], dict.fromkeys(ROLES), normalized=True)
    tokens = len(models["roles"].tokenizer(ROLES["document"])["input_ids"])  # two of them special
    fits, long = " ".join(["the"] * (64 - tokens)), " ".join(["the"] * (65 - tokens))
    assert [opened.too_long(text, "document") for text in (fits, long)] == [False, True]
    corpus = datasets.Dataset.from_dict({"id": ["a", "b", "c", "d"], "text": [fits, long, "ledger", "violin"]})
    made = split_data(corpus, questions(1), {"q0": {"c": 1}})
    (result,) = evaluate_task(task("Long", "t2t", {"default": made}), subject_of(tmp_path, opened), context())
    assert {m.metric: m.value for m in result.measurements}["documents_cut"] == 0.25
