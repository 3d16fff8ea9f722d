"""The mteb evaluator: mteb's own numbers, each item encoded once, and what each query found."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from embedding import build_subject, page
from llmquant.errors import RunError
from llmquant.plugins.context import Context
from llmquant.retrieval.items import Item
from llmquant.stats.samples import pair_samples
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Documents, VectorForm

pytest.importorskip("mteb")

import datasets
from mteb.results import TaskResult

from llmquant.catalogs.mteb import MtebIndex, MtebTask
from llmquant.evaluators.mteb.as_mteb import as_mteb
from llmquant.evaluators.mteb.options import MtebOptions
from llmquant.evaluators.mteb.run import evaluate_task
from mteb_tasks import (
    LANGUAGES,
    Pairs,
    directly,
    judged,
    page_task,
    pages,
    questions,
    six_languages,
    split_data,
    task,
    text_task,
    texts,
)

TASKS = {"pages": page_task, "texts": text_task}


def value(result, metric, **at):
    (found,) = [m for m in result.measurements if m.metric == metric and m.at == at]
    return found.value


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("late", [False, True])
def test_scores_are_those_of_mteb(tmp_path, context, kind, late):
    """The same embedder through mteb's own wrapper gives every value at every k."""
    (result,) = evaluate_task(TASKS[kind](), build_subject(tmp_path, late=late), context())
    theirs, _ = directly(build_subject(tmp_path, late=late), TASKS[kind]())
    (scores,) = theirs.scores["test"]
    assert result.measurements[0].metric == "ndcg_at_5"
    assert result.measurements[0].value == pytest.approx(theirs.get_score(), abs=1e-9)
    assert 0.05 < result.measurements[0].value < 0.95
    for measurement in result.measurements:
        if measurement.unit != "bytes":
            assert measurement.value == pytest.approx(scores[measurement.metric], abs=1e-9)
    assert len(result.measurements) == 6 * 4 + 1


def test_each_query_is_a_sample_and_they_average_to_the_headline(tmp_path, context):
    """The mean of the queries' scores is mteb's value, to the five decimals that mteb keeps."""
    (result,) = evaluate_task(page_task(), build_subject(tmp_path), context())
    headline = result.measurements[0]
    scores = [sample.scores["ndcg_at_5"] for sample in result.samples]
    assert headline.n == len(scores) == 10
    assert headline.value == pytest.approx(np.mean(scores), abs=6e-6)
    assert headline.stderr == pytest.approx(np.std(scores, ddof=1) / math.sqrt(10))
    assert len({sample.document for sample in result.samples}) == 10


def test_a_sample_says_what_was_found_and_what_should_have_been(tmp_path, context):
    """Answers are the five best documents with their scores, targets the relevant ones with their grades."""
    made = page_task()
    (result,) = evaluate_task(made, build_subject(tmp_path), context())
    for sample, (query, relevant) in zip(result.samples, made.made["default"]["relevant_docs"].items(), strict=True):
        best = json.loads(sample.answer)
        assert json.loads(sample.target) == relevant, query
        assert len(best) == 5
        assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)
        first = relevant.get(best[0][0], 0)
        assert (sample.scores["recall_at_1"] > 0) == (first > 0)


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Run the task in six languages with two models, and the first of them through mteb alone."""
    folder = tmp_path_factory.mktemp("six")
    context = Context(
        "cpu", 0, Documents(), Cache(folder / "cache"), {}, None, folder / "files", lambda done, total: None
    )
    subject, plain, other = build_subject(folder), build_subject(folder), build_subject(folder, seed=3)
    ours = evaluate_task(six_languages(), subject, context)
    return (
        ours,
        subject.opened.embedded,
        directly(plain, six_languages()),
        evaluate_task(six_languages(), other, context),
    )


def test_six_languages_on_the_same_pages_encode_them_once(six):
    """Where mteb encodes 8 pages six times, they are encoded once; scores are equal all the same."""
    results, ours, (theirs, encoded), _ = six
    asked = 6 * 8
    assert encoded - asked == 6 * 8
    assert ours - asked == 8
    whole, *parts = results
    assert whole.measurements[0].value == pytest.approx(theirs.get_score(), abs=1e-9)
    by_language = {entry["hf_subset"]: entry["ndcg_at_5"] for entry in theirs.scores["test"]}
    assert {part.measurements[0].at["subset"]: part.measurements[0].value for part in parts} == pytest.approx(
        by_language
    )
    assert whole.measurements[0].value == pytest.approx(np.mean(list(by_language.values())), abs=1e-9)


def test_translations_of_a_question_count_once_in_an_interval(six):
    """The 48 queries in six languages are 8 groups, by their relevant pages; each language has its own samples."""
    (whole, *parts), _, _, (other, *_) = six
    assert len({sample.group for sample in whole.samples}) == 8
    assert whole.measurements[0].n == len(whole.samples) == 48
    found = pair_samples(
        whole.measurements[0], other.measurements[0], {"Six": whole.samples}, {"Six": other.samples}
    ).difference()
    assert found.n == 48
    assert found.changed <= 8
    for part in parts:
        mean = np.mean([sample.scores["ndcg_at_5"] for sample in part.samples])
        assert part.measurements[0].value == pytest.approx(mean, abs=6e-6)


def test_a_repeated_evaluation_encodes_nothing(tmp_path, context):
    """What was encoded before, for any task, is read from the cache."""
    first, second = build_subject(tmp_path), build_subject(tmp_path)
    once = evaluate_task(page_task(), first, context())
    again = evaluate_task(page_task("Renamed"), second, context())
    assert first.opened.embedded == 18
    assert second.opened.embedded == 0
    assert [m.value for m in once[0].measurements] == [m.value for m in again[0].measurements]


def test_a_limit_cuts_queries_and_never_pages(tmp_path, context):
    """The first four queries are asked of all eight pages, and mteb's file does not pass for the whole task's."""
    subject = build_subject(tmp_path)
    (result,) = evaluate_task(page_task(), subject, context(limit=4))
    (whole,) = evaluate_task(page_task(), build_subject(tmp_path), context())
    assert result.measurements[0].n == 4
    assert subject.opened.embedded == 4 + 8
    assert [s.scores for s in result.samples] == [s.scores for s in whole.samples[:4]]
    assert result.details["limit"] == 4
    assert result.details["documents"] == [8]
    assert "experiments/queries_4/" in result.details["result_file"]
    assert "experiments" not in whole.details["result_file"]


def test_result_files_are_mtebs_own(tmp_path, context):
    """The file can be read back, under the model's name with its slash, with the scores that were reported."""
    ctx = context()
    (result,) = evaluate_task(page_task(), build_subject(tmp_path), ctx)
    file = ctx.files / result.details["result_file"]
    read = TaskResult.from_disk(file)
    assert file.parent.parent.name == "local__words-and-patches"
    assert read.get_score() == pytest.approx(result.measurements[0].value, abs=1e-6)
    meta = json.loads((file.parent / "model_meta.json").read_text())
    assert (meta["name"], meta["embed_dim"], meta["similarity_fn_name"]) == ("local/words-and-patches", 32, "cosine")


def test_variants_of_a_model_have_result_files_of_their_own(tmp_path):
    """A quantized model or other vectors are an experiment on the model, by mteb's own way of saying so."""
    paths = set()
    for form in (VectorForm(), VectorForm(16), VectorForm(codec="int8")):
        subject = build_subject(tmp_path, dims=(32, 16), vectors=form)
        meta = as_mteb(subject).mteb_model_meta
        paths.add((meta.name, meta.revision, meta.experiment_name))
    assert len({path[:2] for path in paths}) == 1
    assert len(paths) == 3


def test_a_name_with_a_slash_is_kept(tmp_path):
    """A model can be called as on the leaderboard."""
    assert as_mteb(build_subject(tmp_path), name="org/model-4b").mteb_model_meta.model_name_as_path() == "org__model-4b"


def test_vectors_are_searched_in_the_form_they_are_kept_in(tmp_path, context):
    """A quarter of the dimensions takes a quarter of the bytes, and finds what cutting by hand finds."""
    (whole,) = evaluate_task(text_task(), build_subject(tmp_path, dims=(32, 8)), context())
    cut = build_subject(tmp_path, dims=(32, 8), vectors=VectorForm(8))
    (result,) = evaluate_task(text_task(), cut, context())
    assert value(result, "bytes_per_document") == value(whole, "bytes_per_document") / 4
    assert cut.opened.embedded == 0
    documents, queries = (
        cut.encode(list(rows), role).values[:, :8]
        for rows, role in (
            ([f"{r['title']} {r['text']}".strip() for r in texts()], "document"),
            (questions()["text"], "query"),
        )
    )
    documents, queries = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (documents, queries))
    best = np.argmax(queries @ documents.T, axis=1)
    assert [json.loads(sample.answer)[0][0] for sample in result.samples] == [f"d{n}" for n in best]


def test_a_damaged_page_is_left_out_and_said(tmp_path, context):
    """The other pages are searched, and the run says which page could not be encoded and why."""
    good = page("fine")
    corpus, queries = pages(images=[good, good[: len(good) // 2], page("other", colour="pink"), b""]), questions(4)
    made = task("Broken", "t2i", {"default": split_data(corpus, queries, {q: {"p0": 1} for q in queries["id"]})})
    (result,) = evaluate_task(made, build_subject(tmp_path), context())
    assert set(result.details["skipped"]) == {"p1", "p3"}
    assert all(result.details["skipped"].values())
    assert result.details["documents"] == [4]
    assert {document for document, _ in json.loads(result.samples[0].answer)} == {"p0", "p2"}


def test_an_empty_query_finds_nothing_and_scores_zero(tmp_path, context):
    """It counts, as a user who gets no answer does, and the run names it."""
    corpus, queries = texts(4), questions(3)
    queries = queries.map(lambda row: {"text": "" if row["id"] == "q1" else row["text"]})
    made = task("Empty", "t2t", {"default": split_data(corpus, queries, judged(queries, corpus))})
    (result,) = evaluate_task(made, build_subject(tmp_path), context())
    assert list(result.details["skipped_queries"]) == ["q1"]
    assert result.measurements[0].n == 3
    assert result.samples[1].scores["ndcg_at_10"] == 0
    assert json.loads(result.samples[1].answer) == []


def test_a_document_with_text_or_image_missing_is_its_other_half(tmp_path, context):
    """Where documents have both, an empty text or a missing image leaves the other; only neither is left out."""
    both = page("ledger")
    rows = {
        "id": ["both", "image", "text", "neither"],
        "text": ["the ledger", " ", "where is the ledger barley", ""],
        "image": [{"bytes": both, "path": None}, {"bytes": both, "path": None}, None, None],
    }
    corpus = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    queries = questions(2)
    made = split_data(corpus, queries, {"q0": {"text": 1}, "q1": {"image": 1}})
    (result,) = evaluate_task(task("Halves", "t2it", {"default": made}), build_subject(tmp_path), context())
    assert list(result.details["skipped"]) == ["neither"]
    found = [dict(json.loads(sample.answer)) for sample in result.samples]
    assert [set(scores) for scores in found] == [{"both", "image", "text"}] * 2
    subject = build_subject(tmp_path / "other")
    alone = subject.encode([Item(image=both), Item(text="where is the ledger barley")])
    expected = subject.encode(queries["text"], "query").values @ alone.values.T
    assert [[scores["image"], scores["text"]] for scores in found] == pytest.approx(expected, abs=1e-6)


def test_a_document_that_a_corpus_holds_twice_keeps_its_best_score(tmp_path, context):
    """The worse copy does not take the better one's place."""
    corpus = datasets.Dataset.from_dict(
        {"id": ["d", "e", "d"], "text": ["gravel saddle", "where is the", "where is the ledger"]}
    )
    made = split_data(corpus, questions(1), {"q0": {"d": 1}})
    (result,) = evaluate_task(task("Twice", "t2t", {"default": made}), build_subject(tmp_path), context())
    assert result.measurements[0].value == 1


def test_no_page_that_can_be_encoded_is_an_error(tmp_path, context):
    """A corpus of damaged pages ends the run with the reason."""
    corpus, queries = pages(images=[b"no image", b"neither"]), questions(2)
    made = task("Nothing", "t2i", {"default": split_data(corpus, queries, {q: {"p0": 1} for q in queries["id"]})})
    with pytest.raises(RunError, match="no document could be encoded"):
        evaluate_task(made, build_subject(tmp_path), context())


def test_the_worst_queries_are_kept_with_pictures_of_the_pages(tmp_path, context):
    """What was found and what was missed, as thumbnails beside the run, without what found everything."""
    ctx = context()
    (result,) = evaluate_task(page_task(), build_subject(tmp_path), ctx)
    file = ctx.files / result.details["failures"]
    queries = json.loads(file.read_text())["queries"]
    scores = sorted(sample.scores["ndcg_at_5"] for sample in result.samples)
    assert [query["score"] for query in queries] == [score for score in scores if score < 1][:8]
    for query in queries:
        assert query["query"].startswith("where is the")
        assert len(query["found"]) == 3
        assert {page["id"] for page in query["missed"]} & {page["id"] for page in query["found"]} == set()
        for found in query["found"] + query["missed"]:
            with Image.open(file.parent / found["thumbnail"]) as image:
                assert image.width <= 240


def test_reranking_ranks_the_candidates_alone(tmp_path, context):
    """Only a query's candidates are ranked, as mteb ranks them."""

    def made():
        corpus, queries = texts(), questions(6)
        relevant = judged(queries, corpus)
        candidates = {query: [*found, "d0", "d1", "d2"] for query, found in relevant.items()}
        candidates = {query: list(dict.fromkeys(found)) for query, found in candidates.items()}
        return task("Rerank", "t2t", {"default": split_data(corpus, queries, relevant, candidates)}, main="map_at_1000")

    (result,) = evaluate_task(made(), build_subject(tmp_path), context())
    theirs, _ = directly(build_subject(tmp_path), made())
    assert result.measurements[0].metric == "map_at_1000"
    assert result.measurements[0].value == pytest.approx(theirs.get_score(), abs=1e-9)
    assert len(json.loads(result.samples[0].answer)) <= 5
    assert result.samples[0].scores["map_at_1000"] > 0


def test_similarity_of_pairs_is_that_of_mteb(tmp_path, context):
    """A task that does not search is scored by mteb as a whole; a limit is not applied, and that is said."""
    (result,) = evaluate_task(Pairs(), build_subject(tmp_path), context(limit=3))
    theirs, _ = directly(build_subject(tmp_path), Pairs())
    (scores,) = theirs.scores["test"]
    assert result.measurements[0].metric == "cosine_spearman"
    # Two pairs that are as similar to the last digits may change places with the batch: a rank correlation jumps.
    linear = [measurement for measurement in result.measurements if measurement.metric.endswith("pearson")]
    assert linear
    for measurement in linear:
        assert measurement.value == pytest.approx(scores[measurement.metric], abs=1e-6)
    assert result.measurements[0].value == pytest.approx(scores["cosine_spearman"], abs=0.05)
    assert result.details["limit"].startswith("not applied")
    assert not result.samples


def test_an_empty_text_of_a_task_without_search_is_counted(tmp_path, context):
    """It has a vector of zeros, of which the number is a measurement and the reason a detail."""

    class OneEmpty(Pairs):
        def load_data(self, num_proc=None, **kwargs):
            super().load_data()
            rows = self.dataset["default"]["test"].map(
                lambda row, n: {"sentence1": "" if n == 4 else "a"}, with_indices=True
            )
            self.dataset["default"]["test"] = rows

    (result,) = evaluate_task(OneEmpty(), build_subject(tmp_path), context())
    assert {m.metric: m.value for m in result.measurements}["items_not_encoded"] == 1
    assert "empty text" in result.details["skipped"][0]


def test_pairs_are_compared_by_vectors_as_they_are_kept(tmp_path, context):
    """A task that does not search sees the vectors cut and coded too."""
    whole = as_mteb(build_subject(tmp_path))
    signs = as_mteb(build_subject(tmp_path, dims=(32, 8), vectors=VectorForm(8, "binary")))
    inputs = DataLoader(texts().select_columns(["text"]), batch_size=5)
    about = {"task_metadata": Pairs.metadata, "hf_split": "test", "hf_subset": "default"}
    floats, coded = whole.encode(inputs, **about), signs.encode(inputs, **about)
    assert (floats.shape, coded.shape) == ((12, 32), (12, 8))
    assert np.array_equal(np.sign(coded), np.where(floats[:, :8] > 0, 1, -1))


def test_a_task_whose_data_cannot_be_had_says_so(tmp_path, context):
    """What the task's own code raises is reported with the task's name."""

    class Gone(type(page_task())):
        def load_data(self, num_proc=None, **kwargs):
            raise ConnectionError("no route to the hub")

    with pytest.raises(RunError, match=r"the data of task 'Pages' could not be fetched: no route to the hub"):
        evaluate_task(Gone(), build_subject(tmp_path), context())


def test_the_evaluator_runs_the_subsets_that_are_asked_for(tmp_path, context, monkeypatch):
    """A task is taken by its name from mteb, cut to languages, and nothing else of it is encoded."""
    from mteb.get_tasks import _TASKS_REGISTRY

    from llmquant.evaluators.mteb import evaluator

    subsets = {name: codes[0] for name, codes in LANGUAGES.items()}
    known = MtebTask("Six", "Retrieval", True, "t2i", ("text", "image"), "ndcg_at_5", subsets, ("test",), 48, 8, None)
    index = MtebIndex("1", {"Six": known}, {"Several": (("Six", ("fra", "deu", "ita"), ()),)})
    monkeypatch.setattr(evaluator, "known_mteb", lambda cache: index)
    monkeypatch.setitem(_TASKS_REGISTRY, "Six", type(six_languages()))
    subject = build_subject(tmp_path)
    options = MtebOptions(("Several",), languages=("deu", "ita", "eng"))
    whole, *parts = evaluator.Mteb(options).evaluate(subject, context())
    assert [part.measurements[0].at["subset"] for part in parts] == ["deu", "ita"]
    assert whole.measurements[0].n == 16
    assert subject.opened.embedded == 8 + 16
