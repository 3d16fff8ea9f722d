"""What a study's documents can prove, before it starts: by an assumption, or by earlier runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmquant.results.precision import Precision, precisions
from llmquant.stats import reachable_margin
from llmquant.storage.store import Store
from llmquant.study.experiment import Documents
from made_up import BASELINE, MadeUpStudy, completed, experiment, scored, store_of


def study(n: int, *, changed: float, limit: int = 100) -> MadeUpStudy:
    """Make a study of right and wrong answers, of which a share changes."""
    rng = np.random.default_rng(0)
    base = (rng.random(n) < 0.5).astype(float)
    flip = rng.random(n) < changed
    found = MadeUpStudy()
    for label, scores in ((BASELINE, base), ("nf4", np.where(flip, 1 - base, base))):
        mean, samples = scored("coqa", "em", scores)
        asked = replace(experiment(label, "lm_eval(coqa)"), documents=Documents(limit))
        found.add(completed(asked, mean), {"coqa": samples})
    return found


def test_without_a_pilot_one_answer_in_ten_is_assumed_to_change(tmp_path: Path):
    """100 documents reach about 8.9 points; 2 points need about 1,960, and 1 point about 7,850."""
    record = replace(study(100, changed=0.1).record, limit=100)
    (found,) = precisions(record, Store(tmp_path))
    assert not found.pilot
    assert found.reachable == pytest.approx(reachable_margin(100, 0.1**0.5))
    assert str(found) == (
        "lm_eval(coqa): 100 documents can prove a margin of about 8.9 points; a margin of 2 points needs "
        "about 2,000 "
        "(if 10% of answers change)"
    )
    (finer,) = precisions(replace(record, margins={**record.margins, "shares": 0.01}), Store(tmp_path))
    assert finer.needed == pytest.approx(7849, abs=1)


def test_earlier_runs_of_the_model_are_the_pilot(tmp_path: Path):
    """The spread of stored runs on the same task replaces the assumption, whatever their limit was."""
    store = store_of(study(400, changed=0.02, limit=400), tmp_path)
    (found,) = precisions(replace(study(100, changed=0.1).record, limit=100), store)
    assert found.pilot
    assert found.reachable == pytest.approx(reachable_margin(100, 0.02**0.5), rel=0.35)
    assert "by earlier runs" in str(found)


def test_what_was_planned_holds():
    """A variant without loss is called no worse at the planned margin in about four of five studies."""
    from llmquant.stats import judge, paired_difference

    rng = np.random.default_rng(1)
    n, margin = 600, reachable_margin(600, 0.1**0.5)
    proven = 0
    for _ in range(200):
        base = (rng.random(n) < 0.5).astype(float)
        flip = rng.random(n) < 0.1
        found = paired_difference(np.where(flip, 1 - base, base), base)
        proven += judge(found, higher_is_better=True, margin=margin).verdict in ("no worse", "better")
    assert 0.7 <= proven / 200 <= 0.9


def test_enough_documents_need_no_more():
    """Where the documents suffice for the margin, no larger number is named."""
    assert str(Precision("t", 10_000, 0.005, 0.02, 2_000, pilot=True)) == (
        "t: 10,000 documents can prove a margin of about 0.5 points (by earlier runs)"
    )
