"""Drift on tasks with several subsets and splits: one number of results, and every query counted once."""

from __future__ import annotations

import numpy as np
import pytest

from embedding import build_subject

pytest.importorskip("mteb")

import mteb

from llmquant.evaluators.drift.evaluator import Drift
from llmquant.evaluators.drift.options import DriftOptions
from llmquant.study.run import REFERENCE_FILE
from mteb_tasks import Ready, judged, metadata, questions, split_data, texts


def two_sizes(splits):
    """Return a task of a corpus of 4 and one of 12 documents, with the same ids of queries in every split."""
    made = {}
    for subset, count in (("small", 4), ("large", 12)):
        corpus, queries = texts(12).select(range(count)), questions(6)
        made[subset] = split_data(corpus, queries, judged(queries, corpus))

    class TwoSizes(Ready):
        def load_data(self, num_proc=None, **kwargs):
            self.dataset = {subset: {split: dict(data) for split in splits} for subset, data in made.items()}
            self.data_loaded = True

    found = metadata("TwoSizes", "t2t", languages={subset: ["eng-Latn"] for subset in made})
    TwoSizes.metadata = found.model_copy(update={"eval_splits": list(splits)})
    return TwoSizes()


def rankings(subject, count):
    documents = subject.encode([f"{row['title']} {row['text']}".strip() for row in texts(12)][:count])
    return np.argsort(-(subject.encode(questions(6)["text"], "query").values @ documents.values.T), axis=1)


def test_subsets_of_different_sizes_are_compared_at_one_number_of_results(tmp_path, context, monkeypatch):
    """With 4 documents in one subset, the overlap of the other is that of the best 4 too, as its name says."""
    monkeypatch.setattr(mteb, "get_task", lambda name: two_sizes(["test"]))
    baseline, variant = build_subject(tmp_path), build_subject(tmp_path, seed=1)
    drift = Drift(DriftOptions("TwoSizes"))
    list(drift.evaluate(baseline, context(files=tmp_path / "first")))
    (result,) = drift.evaluate(variant, context(reference=tmp_path / "first" / REFERENCE_FILE))
    shares = [
        len({*ours[:4]} & {*theirs[:4]}) / 4
        for count in (4, 12)
        for ours, theirs in zip(rankings(variant, count), rankings(baseline, count), strict=True)
    ]
    assert result.measurements[0].metric == "overlap_at_4"
    assert [sample.scores["overlap_at_4"] for sample in result.samples] == shares
    assert 0 < np.mean(shares[6:]) < 1


def test_a_query_of_each_split_is_a_sample_of_its_own(tmp_path, context, monkeypatch):
    """Two splits that number their queries alike have different samples."""
    monkeypatch.setattr(mteb, "get_task", lambda name: two_sizes(["dev", "test"]))
    (result,) = Drift(DriftOptions("TwoSizes")).evaluate(build_subject(tmp_path), context())
    assert len({sample.document for sample in result.samples}) == len(result.samples) == 24
