"""BEIR folders: a text corpus, queries and judgements, with no code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embedding import build_subject
from llmquant.errors import OptionError, RequestErrors
from llmquant.evaluators.beir.files import read_beir
from llmquant.evaluators.beir.options import BeirOptions
from llmquant.plugins.options import build, dump, input_files, restore
from llmquant.study.call import Call
from llmquant.study.experiment import VectorForm
from llmquant.study.run import REFERENCE_FILE

HEADER = "query-id\tcorpus-id\tscore\n"
WORDS = ("ledger", "barley", "kettle", "harbour", "engine", "lantern", "orchard", "mitten")
CORPUS = [
    {"_id": f"d{n}", "title": word, "text": f"the {word} stood beside the {WORDS[(n + 3) % 8]}", "metadata": {"n": n}}
    for n, word in enumerate(WORDS)
]
QUERIES = [{"_id": f"q{n}", "text": f"where is the {WORDS[n]} {WORDS[(n + 2) % 8]}"} for n in range(7)]
# Graded, one of them negative as in TREC-COVID; q6 belongs to another split.
JUDGED = [(f"q{n}", f"d{d}", score) for n in range(6) for d, score in (((n + 1) % 8, 2), ((n + 5) % 8, 1), (n, -1))]


@pytest.fixture
def folder(tmp_path):
    def write(corpus=CORPUS, queries=QUERIES, judged=JUDGED, *, name="scifact"):
        path = tmp_path / name
        (path / "qrels").mkdir(parents=True, exist_ok=True)
        for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (path / file).write_text(text, encoding="utf-8")
        lines = (
            judged if isinstance(judged, str) else HEADER + "".join("\t".join(map(str, row)) + "\n" for row in judged)
        )
        (path / "qrels" / "test.tsv").write_text(lines, encoding="utf-8")
        return path

    return write


def options(path, **given):
    return build(BeirOptions, Call("beir", (str(path),), given))


def evaluate(tmp_path, ctx, chosen, **subject):
    from llmquant.evaluators.beir.evaluator import Beir

    (result,) = Beir(chosen).evaluate(build_subject(tmp_path, modalities=("text",), **subject), ctx)
    return result


def messages(path, **given):
    return [error.message for error in read_beir(path, path.name, given.get("split", "test"))[1]]


def ndcg(ranked, grades, k):
    """Compute NDCG at `k` from its definition: gains are grades above 0, discounted by log2(rank + 1)."""

    def dcg(gains):
        return sum(max(gain, 0) / np.log2(rank + 1) for rank, gain in enumerate(gains[:k], start=1))

    return dcg([grades.get(document, 0) for document in ranked]) / dcg(sorted(grades.values(), reverse=True))


def test_ndcg_is_that_of_its_definition(tmp_path, context, folder):
    """Each query's NDCG@5 and the mean of NDCG@10 follow from the scores of title and text, joined by a space."""
    result = evaluate(tmp_path, context(), options(folder()))
    subject = build_subject(tmp_path / "other", modalities=("text",))
    documents = subject.encode([f"{row['title']} {row['text']}" for row in CORPUS])
    queries = subject.encode([row["text"] for row in QUERIES[:6]], "query")
    means = []
    for number, sample in enumerate(result.samples):
        scores = documents.values @ queries.item(number)
        ranked = [f"d{d}" for d in np.argsort(scores)[::-1]]
        assert [name for name, _ in json.loads(sample.answer)] == ranked[:5]
        grades = {document: score for query, document, score in JUDGED if query == f"q{number}"}
        assert sample.scores["ndcg_at_5"] == pytest.approx(ndcg(ranked, grades, 5), abs=1e-9)
        means.append(ndcg(ranked, grades, 10))
    headline = result.measurements[0]
    assert (headline.metric, headline.n) == ("ndcg_at_10", 6)
    assert headline.value == pytest.approx(np.mean(means), abs=1e-5)  # mteb rounds
    assert headline.stderr == pytest.approx(np.std(means, ddof=1) / np.sqrt(6))
    assert 0.05 < headline.value < 0.95


def test_mteb_scores_the_same(tmp_path, context, folder):
    """Mteb's own evaluator on mteb's own data structures gives every metric at every k."""
    import datasets

    from mteb_tasks import directly, split_data, task

    rows = [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in CORPUS]
    relevant: dict[str, dict[str, int]] = {}
    for query, document, score in JUDGED:
        relevant.setdefault(query, {})[document] = score
    queries = datasets.Dataset.from_list([{"id": row["_id"], "text": row["text"]} for row in QUERIES[:6]])
    made = split_data(datasets.Dataset.from_list(rows), queries, relevant)
    subject = build_subject(tmp_path / "theirs", modalities=("text",))
    theirs, _ = directly(subject, task("Theirs", "t2t", {"default": made}, main="ndcg_at_10"))
    (scores,) = theirs.scores["test"]
    result = evaluate(tmp_path, context(), options(folder()))
    found = {m.metric: m.value for m in result.measurements if m.metric in scores}
    assert len(found) > 15
    assert found == pytest.approx({metric: scores[metric] for metric in found}, abs=1e-9)


def test_only_judged_queries_are_asked(tmp_path, context, folder):
    """A query of another split is left out, which the run says; --limit takes the first judged queries."""
    chosen = options(folder())
    result = evaluate(tmp_path, context(), chosen)
    assert (len(result.samples), result.details["queries_not_judged"]) == (6, 1)
    assert evaluate(tmp_path, context(limit=2), chosen).samples == result.samples[:2]


def test_a_form_of_vectors_applies(tmp_path, context, folder):
    """Half of the dimensions as signs take a 64th of the bytes."""
    sizes = []
    for form in (VectorForm(), VectorForm(dim=16, codec="binary")):
        result = evaluate(tmp_path, context(), options(folder()), dims=(16, 32), vectors=form)
        sizes.append({m.metric: m.value for m in result.measurements}["bytes_per_document"])
        assert 0 < result.measurements[0].value < 1
    assert sizes == [128, 2]


@pytest.mark.parametrize(("answer", "first"), [("other", "other"), ("same", "same")])
def test_a_query_that_is_a_document_does_not_find_itself(tmp_path, context, folder, answer, first):
    """As in BEIR a document with the query's id is left out, but not where such a document is an answer."""
    corpus = [
        {"_id": "same", "text": "barley"},
        {"_id": "other", "text": "barley kettle"},
        {"_id": "x", "text": "engine"},
    ]
    path = folder(corpus, [{"_id": "same", "text": "barley"}], [("same", answer, 1)])
    result = evaluate(tmp_path, context(), options(path))
    assert result.details["own_ids_left_out"] == (answer == "other")
    counts = [m.value for m in result.measurements if m.metric == "own_ids_left_out"]
    assert counts == ([1] if answer == "other" else [])
    assert json.loads(result.samples[0].answer)[0][0] == first
    assert result.measurements[0].value == 1


def test_a_document_without_text_is_a_recorded_skip(tmp_path, context, folder):
    """Real corpora hold such documents; they cannot be found, and the table shows their number."""
    path = folder([*CORPUS, {"_id": "empty", "title": "", "text": " "}])
    assert messages(path) == []
    result = evaluate(tmp_path, context(), options(path))
    assert list(result.details["skipped"]) == ["empty"]
    assert {m.metric: m.value for m in result.measurements}["documents_not_encoded"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corpus": ""}, "scifact/corpus.jsonl has no documents"),
        ({"corpus": "{}\n[]\n"}, "scifact/corpus.jsonl, line 1: _id is missing"),
        ({"corpus": [{"_id": 3, "text": "x"}]}, "scifact/corpus.jsonl, line 1: _id is 3, not a text"),
        ({"corpus": [{"_id": "", "text": "x"}]}, "scifact/corpus.jsonl, line 1: the _id is empty"),
        ({"corpus": [{"_id": "d0"}]}, "scifact/corpus.jsonl, line 1: text is missing"),
        ({"corpus": [{"_id": "d0", "text": "x", "title": 1}]}, "scifact/corpus.jsonl, line 1: title is 1, not a text"),
        ({"corpus": [*CORPUS, CORPUS[1]]}, "scifact/corpus.jsonl, line 9: _id 'd1' is that of line 2 already"),
        ({"corpus": "{]\n"}, "scifact/corpus.jsonl, line 1 is not JSON: Expecting property name"),
        ({"queries": ""}, "scifact/queries.jsonl has no queries"),
        ({"queries": [*QUERIES, QUERIES[0]]}, "scifact/queries.jsonl, line 8: _id 'q0' is that of line 1 already"),
        ({"queries": [{"_id": "q0", "text": " "}]}, "scifact/queries.jsonl, line 1: the text is empty"),
        ({"judged": ""}, "scifact/qrels/test.tsv, line 1 is ''"),
        ({"judged": HEADER}, "scifact/qrels/test.tsv has no judgements"),
        ({"judged": "q0\td0\t1\n"}, "scifact/qrels/test.tsv, line 1 is 'q0 d0 1'"),
        ({"judged": HEADER + "q0\td0\n"}, "scifact/qrels/test.tsv, line 2: there are 2 cells, not 3"),
        ({"judged": [("q9", "d0", 1)]}, "scifact/qrels/test.tsv, line 2: there is no query 'q9' in queries.jsonl"),
        ({"judged": [("q0", "d9", 1)]}, "scifact/qrels/test.tsv, line 2: there is no document 'd9' in corpus.jsonl"),
        ({"judged": [("q0", "d0", "1.5")]}, "scifact/qrels/test.tsv, line 2: the score is '1.5', not a whole number"),
        (
            {"judged": [("q0", "d0", 1)] * 2},
            "scifact/qrels/test.tsv, line 3: document 'd0' is judged twice for query 'q0'",
        ),
        (
            {"judged": [("q0", "d0", 1), ("q1", "d0", 0)]},
            "scifact/qrels/test.tsv, line 3: query 'q1' has no document with a score above 0",
        ),
        ({"judged": HEADER + 'q0\t"d0\t1\n'}, "scifact/qrels/test.tsv, line 2 cannot be read: unexpected end of data"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_line(folder, wrong, message):
    """Whatever is wrong in a folder is refused before anything is loaded."""
    assert messages(folder(**wrong))[0].startswith(message)


def test_mistakes_of_all_files_are_named_together(tmp_path, folder):
    """A check reports each mistake, at most twenty of them, and an embedder that does not encode texts."""
    path = folder([*CORPUS, CORPUS[0]], [*QUERIES, {"_id": "q9"}], [("q0", "d99", 1)] * 30)
    with pytest.raises(RequestErrors) as caught:
        options(path).check(build_subject(tmp_path, modalities=("image",)).info, "cpu")
    found = [error.message for error in caught.value.errors]
    assert len(found) == 22
    assert ["line 9" in found[0], "line 8" in found[1], "line 2" in found[2]] == [True] * 3
    assert found[-2:] == [
        "scifact has 12 more mistakes like these",
        "scifact holds texts, but words-and-patches encodes only image",
    ]


def test_a_missing_file_is_named_with_the_splits_that_exist(tmp_path, folder):
    """The hint says which files a BEIR folder has, or which splits this one has."""
    path = folder()
    (path / "qrels" / "test.tsv").rename(path / "qrels" / "dev.tsv")
    info = build_subject(tmp_path).info
    with pytest.raises(OptionError, match=r"scifact has no qrels/test.tsv\n?.*split=dev"):
        options(path).check(info, "cpu")
    options(path, split="dev").check(info, "cpu")
    (path / "corpus.jsonl").unlink()
    assert messages(path, split="dev") == ["scifact has no corpus.jsonl"]


def test_pages_are_not_taken_for_a_beir_folder(tmp_path, folder):
    """The evaluator of one's own pages names the evaluator of BEIR folders."""
    from llmquant.evaluators.page_set.options import LocalSetOptions

    path = folder()
    pages = build(LocalSetOptions, Call("retrieval", (str(path),), {"queries": str(path / "queries.jsonl")}))
    with pytest.raises(OptionError, match="beir") as caught:
        pages.check(build_subject(tmp_path).info, "cpu")
    assert "has no pages" in caught.value.message


def test_a_folder_travels_by_its_content(tmp_path, context, folder):
    """A worker reads the folder that the digest names, and gives the same samples."""
    chosen = options(folder())
    there = restore(BeirOptions, dump(chosen))
    assert there.folder.path is None
    here = evaluate(tmp_path, context(), chosen)
    assert evaluate(tmp_path, context(inputs=input_files(chosen)), there).samples == here.samples


def test_drift_reads_a_beir_folder(tmp_path, context, folder):
    """Two models with other weights are compared on its documents and queries; other folders need queries."""
    from llmquant.evaluators.drift.evaluator import Drift
    from llmquant.evaluators.drift.options import DriftOptions

    path = folder()
    chosen = build(DriftOptions, Call("drift", (str(path),), {"results": 3}))
    info = build_subject(tmp_path, modalities=("text",)).info
    chosen.check(info, "cpu")
    results = []
    for seed, reference in ((0, None), (1, tmp_path / "0" / REFERENCE_FILE)):
        subject = build_subject(tmp_path, modalities=("text",), seed=seed)
        results += Drift(chosen).evaluate(subject, context(files=tmp_path / str(seed), reference=reference))
    same, other = ({m.metric: m.value for m in result.measurements} for result in results)
    assert (same["overlap_at_3"], same["top_1_changed"]) == (1, 0)
    assert other["overlap_at_3"] < 1
    (path / "corpus.jsonl").rename(path / "page.txt")
    with pytest.raises(OptionError, match="pages need queries"):
        build(DriftOptions, Call("drift", (str(path),), {})).check(info, "cpu")
