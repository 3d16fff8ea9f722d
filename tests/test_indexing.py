"""Indexing speed: documents per second and per dollar, measured on documents and never on cached vectors."""

from __future__ import annotations

import json
from statistics import median

import pytest

from embedding import build_subject, page
from llmquant.errors import OptionError, RequestError, RunError
from llmquant.evaluators.speed.indexing import Indexing
from llmquant.evaluators.speed.indexing_options import IndexingOptions
from llmquant.plugins.options import build
from llmquant.results.comparison import Comparison
from llmquant.results.report.summary import summary
from llmquant.results.report.text import render
from llmquant.study.call import Call
from llmquant.study.run import Measurement
from made_up import BASELINE, HARDWARE, MadeUpStudy, completed, experiment


@pytest.fixture
def corpus(tmp_path):
    """Write the corpus of a BEIR folder: ten texts and one that is empty."""
    path = tmp_path / "scifact"
    path.mkdir()
    rows = [{"_id": f"d{n}", "title": f"title {n}", "text": f"text number {n}"} for n in range(10)]
    rows.append({"_id": "empty", "text": " "})
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(*data, **given):
    return build(IndexingOptions, Call("indexing", tuple(map(str, data)), {"repeats": 3, **given}))


def measure(subject, ctx, chosen):
    (result,) = Indexing(chosen).evaluate(subject, ctx)
    return result, {m.metric: m for m in result.measurements}


@pytest.mark.parametrize(("modalities", "kind"), [(("text",), "text"), (("text", "image"), "image")])
def test_documents_are_generated_for_the_embedder(tmp_path, context, modalities, kind):
    """Pages for an embedder of images, otherwise texts; the rate is documents over the median time of a pass."""
    subject = build_subject(tmp_path, modalities=modalities)
    result, found = measure(subject, context(), options(documents=4, warmup=2))
    assert list(found) == ["documents_per_s"]
    rate = found["documents_per_s"]
    assert (rate.unit, rate.n, rate.at, rate.higher_is_better) == ("documents/s", 3, {"documents": 4}, True)
    assert rate.value == pytest.approx(4 / median(result.details["seconds"]), rel=1e-2)
    assert result.details["kind"] == kind
    assert subject.opened.embedded == 4 * (2 + 3)


def test_cached_vectors_are_not_used(tmp_path, context, corpus):
    """Every pass encodes every document, also those whose vectors are in the cache, and keeps nothing there."""
    subject = build_subject(tmp_path, modalities=("text",))
    subject.encode([f"title {n} text number {n}" for n in range(10)])
    before = subject.opened.embedded
    result, found = measure(subject, context(), options(corpus))
    assert subject.opened.embedded == before + 10 * (1 + 3)
    assert found["documents_per_s"].at == {"documents": 10}
    assert result.details["skipped"] == ["empty has an empty text: ''\nUse the text None for an image alone."]
    again = build_subject(tmp_path / "new", modalities=("text",))
    measure(again, context(), options(corpus))
    again.encode(["title 0 text number 0"])
    assert again.opened.embedded == 10 * (1 + 3) + 1


def test_an_embedder_that_keeps_pages_is_asked_to_read_them_anew(tmp_path, context):
    """`uncached()` of an embedder returns the one that is timed."""
    subject = build_subject(tmp_path)
    timed = build_subject(tmp_path).opened
    subject.opened.uncached = lambda: timed
    measure(subject, context(), options(documents=2))
    assert (subject.opened.embedded, timed.embedded) == (0, 2 * (1 + 3))


def test_own_pages_are_a_sample_drawn_by_the_seed(tmp_path, context):
    """The same seed draws the same pages; a damaged page counts as not encoded."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(page(str(number)) if number else b"damaged")
    subject = build_subject(tmp_path)
    result, found = measure(subject, context(), options(folder, documents=6))
    assert found["documents_per_s"].at == {"documents": 5}
    assert "0.png" in result.details["skipped"][0]
    assert measure(subject, context(), options(folder, documents=2))[1]["documents_per_s"].at["documents"] <= 2


def test_a_price_gives_documents_per_dollar(tmp_path, context):
    """At 1.80 dollars an hour a dollar is 2,000 seconds."""
    _, found = measure(build_subject(tmp_path), context(), options(documents=2, dollars_per_hour=1.8))
    assert found["documents_per_dollar"].value == pytest.approx(2000 * found["documents_per_s"].value)


def test_no_pass_starts_after_the_budget(tmp_path, context):
    """Three passes are measured at least."""
    _, found = measure(build_subject(tmp_path), context(), options(documents=1, repeats=50, budget_s=1e-9))
    assert found["documents_per_s"].n == 3


def test_nothing_to_encode_is_a_failure_with_its_reason(tmp_path, context, corpus):
    """A corpus of empty texts has no speed."""
    (corpus / "corpus.jsonl").write_text('{"_id": "a", "text": ""}\n')
    with pytest.raises(RunError, match="no document could be encoded: a has an empty text"):
        measure(build_subject(tmp_path, modalities=("text",)), context(), options(corpus))


def test_wrong_documents_are_refused_before_anything_is_loaded(tmp_path, corpus):
    """Mistakes of a corpus, texts for an embedder of images alone, and sizes below one."""
    info = build_subject(tmp_path, modalities=("text",)).info
    options(corpus).check(info, "cpu")
    with (corpus / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d1", "text": "again"}\n')
    with pytest.raises(OptionError, match=r"corpus.jsonl, line 12: _id 'd1' is that of line 2 already"):
        options(corpus).check(info, "cpu")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.png").write_bytes(page("a"))
    with pytest.raises(RequestError, match="encodes only text"):
        options(tmp_path / "pages").check(info, "cpu")
    with pytest.raises(OptionError, match="dollars_per_hour must be above 0"):
        options(dollars_per_hour=0)


def test_a_paid_run_has_a_row_of_documents_per_dollar():
    """Without a price its own cost is used, under another name; a free run, or one with a price, has no such row."""
    study = MadeUpStudy()
    rate = Measurement("indexing", "documents_per_s", 5.0, "documents/s", higher_is_better=True, n=3)
    priced = Measurement("indexing", "documents_per_dollar", 9.0, "documents/dollar", higher_is_better=True, n=3)
    for variant, more in ((BASELINE, ()), ("bnb_8bit", ()), ("bnb_4bit_nf4", (priced,))):
        study.add(completed(experiment(variant, "indexing", hardware=HARDWARE), rate, *more))
    first, _, third = study.runs
    found = Comparison(study.record, study.runs, study.read, dollars={first: 0.5, third: 0.5})
    values = {(row.variant, row.metric): row.value for row in found.rows() if "dollar" in row.metric}
    paid, alone = (BASELINE, "documents_per_dollar_paid"), ("bnb_4bit_nf4", "documents_per_dollar")
    assert values == {paid: 5 * 240 / 0.5, alone: 9}  # a made-up run takes four minutes
    text = render(summary(found.rows(), study.record), 120)
    assert "documents/s" in text
    assert "documents/dollar paid: of all that the run cost" in " ".join(text.split())
    said = " ".join(text.split())
    assert "loading, reading files and building an index are not included" in said
    assert "its share of starting and loading included" in said
    assert "2400" in text.replace(",", "")
