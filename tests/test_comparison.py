"""From stored runs to rows: like is compared with like, and what is not there is not invented."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from llmquant.errors import StoreError
from llmquant.results.row import Row, failures, missing
from llmquant.results.rows import rows, variants
from llmquant.study.experiment import Documents, ModelUse
from llmquant.study.record import StudyRecord
from llmquant.study.run import Measurement
from made_up import (
    BASELINE,
    MODEL,
    MadeUpStudy,
    completed,
    experiment,
    failed,
    perplexity,
    realistic_study,
    scored,
)

COQA = "lm_eval(coqa)"


def rows_of(study: MadeUpStudy) -> list[Row]:
    """Return the rows of single tasks."""
    return [row for row in rows(study.record, study.runs, study.read) if not row.pooled]


def pair(base, variant, *, metric="f1", prompts=("p", "p")) -> MadeUpStudy:
    """Make a study of one task: a baseline and one variant."""
    study = MadeUpStudy()
    for label, scores, prompt in zip((BASELINE, "nf4"), (base, variant), prompts, strict=True):
        mean, samples = scored("coqa", metric, scores, prompt=prompt)
        study.add(completed(experiment(label, COQA), mean), {"coqa": samples})
    return study


def single(study: MadeUpStudy) -> Row:
    """Return the variant's only row."""
    (row,) = [row for row in rows_of(study) if not row.is_baseline]
    return row


# -- differences -----------------------------------------------------------------------------------------------------


def test_a_difference_is_of_the_same_documents():
    """A score's difference is the mean over paired documents, with its interval and a verdict."""
    rng = np.random.default_rng(0)
    base = rng.random(80)
    row = single(pair(base, np.clip(base - 0.2, 0, 1)))
    assert row.baseline == BASELINE
    assert row.baseline_value == pytest.approx(base.mean())
    assert row.difference == pytest.approx(np.mean(np.clip(base - 0.2, 0, 1) - base))
    assert row.difference_low < row.difference < row.difference_high < 0
    assert (row.pairs, row.verdict) == (80, "worse")


def test_samples_pair_by_document_and_not_by_order():
    """Samples in another order pair all the same."""
    study = pair([0.1, 0.2, 0.9, 1.0, 0.3, 0.0, 0.5], [0.0, 0.1, 0.8, 0.9, 0.2, 0.1, 0.4])
    before = single(study)
    study.samples[before.run_id]["coqa"].reverse()
    assert single(study) == before


def test_duplicate_documents_pair_by_occurrence():
    """The second of two equal documents pairs with the second."""
    study = pair([0.0, 1.0], [0.0, 1.0])
    for run_id, tasks in study.samples.items():
        one, other = tasks["coqa"]
        study.samples[run_id] = {"coqa": [one, replace(other, document=one.document, prompt=one.prompt, occurrence=1)]}
    row = single(study)
    assert (row.pairs, row.pairs_higher, row.pairs_lower) == (2, 0, 0)


def test_other_prompts_do_not_pair():
    """Scores on other prompts have a difference and no interval, no verdict, and the reason."""
    row = single(pair([0.0, 1.0, 0.5], [1.0, 1.0, 0.5], prompts=("two examples", "none")))
    assert row.difference == pytest.approx(1 / 3)
    assert (row.difference_low, row.pairs, row.verdict) == (None, None, None)
    assert "prompts" in row.no_interval


def test_a_metric_that_is_no_mean_has_no_interval():
    """Where a value is not the mean of its documents' scores, the scores' interval is not the value's."""
    study = pair([0.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    for run_id, run in study.runs.items():
        study.runs[run_id] = replace(run, measurements=(replace(run.measurements[0], value=0.31),))
    row = single(study)
    assert (row.difference, row.verdict) == (0.0, None)
    assert "not the mean" in row.no_interval


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers_decide_nothing(score):
    """One score that is not finite takes the interval away and breaks nothing."""
    row = single(pair([0.0, 1.0, 1.0], [1.0, score, 1.0]))
    assert row.verdict is None
    json.dumps(row.to_json(), allow_nan=False)


def test_perplexity_is_compared_as_a_ratio_over_paired_windows():
    """The ratio of perplexities has an interval that pairing makes far narrower than the texts' own spread."""
    rng = np.random.default_rng(3)
    tokens = [512] * 30 + [100]
    base = np.array(tokens) * rng.normal(3.0, 0.4, 31)
    study = MadeUpStudy()
    for label, nll in ((BASELINE, base), ("nf4", base + np.array(tokens) * rng.normal(0.2, 0.02, 31))):
        values, windows = perplexity(nll, tokens)
        study.add(completed(experiment(label, "perplexity"), *values), {"perplexity": windows})
    by_metric = {row.metric: row for row in rows_of(study) if not row.is_baseline}
    row = by_metric["perplexity"]
    assert row.ratio == pytest.approx(row.value / row.baseline_value)
    assert 1 < row.ratio_low < row.ratio < row.ratio_high < 1.3
    assert (row.difference_low, row.verdict) == (None, "worse")
    assert by_metric["nll_per_token"].difference_low == pytest.approx(math.log(row.ratio_low))
    assert by_metric["bits_per_byte"].difference_high == pytest.approx(math.log2(row.ratio_high) / 4)


def test_sizes_and_times_have_a_ratio_and_no_verdict():
    """A number without documents is compared with the baseline's and judged by the reader."""
    study = MadeUpStudy()
    for label, mib in ((BASELINE, 2357.0), ("nf4", 981.0)):
        size = Measurement("memory", "weights_bytes", mib * 2**20, "bytes", higher_is_better=False)
        study.add(completed(experiment(label, "memory", hardware="cpu"), size))
    row = single(study)
    assert row.ratio == pytest.approx(981 / 2357)
    assert (row.verdict, row.difference_stderr) == (None, None)


# -- like with like --------------------------------------------------------------------------------------------------


def test_conditions_are_part_of_what_is_compared():
    """A value at batch 4 is compared with the baseline's at batch 4, and with nothing if there is none."""
    study = MadeUpStudy()
    for label, batches in ((BASELINE, (1, 4)), ("nf4", (4, 8))):
        rates = [Measurement("t", "rate", 10.0 * b + len(label), "tokens/s", True, at={"batch": b}) for b in batches]
        study.add(completed(experiment(label, "throughput", hardware="cpu"), *rates))
    at = {row.at["batch"]: row for row in rows_of(study) if not row.is_baseline}
    assert at[4].difference == len("nf4") - len(BASELINE)
    assert (at[8].baseline_value, at[8].difference, at[8].ratio) == (None, None, None)
    assert at[8].no_interval


@pytest.mark.parametrize(
    "change",
    [
        {"hardware": "L40S"},
        {"seed": 1},
        {"documents": Documents(7)},
        {"evaluator": experiment("x", "lm_eval(coqa, num_fewshot=2)").evaluator},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_asked_otherwise_are_not_compared(change):
    """Other hardware, seed, documents or options make no difference to take."""
    mean, _ = scored("coqa", "f1", [0.0, 1.0])
    study = MadeUpStudy()
    study.add(completed(experiment(BASELINE, COQA), mean))
    study.add(completed(replace(experiment("nf4", COQA), **change), mean))
    assert single(study).difference is None


def test_each_model_has_its_own_baseline():
    """A variant is compared with the baseline of its own model."""
    study = MadeUpStudy()
    for digest, value in (("sha256:a", 0.0), ("sha256:b", 0.5)):
        model = ModelUse(digest, digest)
        for label in (BASELINE, "nf4"):
            study.add(completed(experiment(label, COQA, model=model), Measurement("coqa", "x", value)))
    assert [row.baseline_value for row in rows_of(study) if not row.is_baseline] == [0.0, 0.5]


def test_names_are_the_studys_own():
    """A reused run that somebody else asked for by another name is called as this study calls it."""
    study = pair([0.0, 1.0], [0.0, 1.0])
    for run_id, run in study.runs.items():
        variant = replace(run.experiment.variant, model=replace(MODEL, source="/elsewhere/copy"))
        study.runs[run_id] = replace(run, experiment=replace(run.experiment, variant=variant))
    assert {row.model for row in rows_of(study)} == {MODEL.source}


# -- what is not there -----------------------------------------------------------------------------------------------


def test_a_failed_run_is_a_row_with_its_reason():
    """A failure is one row without numbers, that says why."""
    study = pair([0.0, 1.0], [0.0, 1.0])
    study.add(failed(experiment("int8", COQA), "out_of_memory", "CUDA out of memory"))
    (row,) = failures(rows_of(study))
    assert (row.variant, row.failure_kind, row.failure) == ("int8", "out_of_memory", "CUDA out of memory")
    assert (row.value, row.difference, row.metric) == (None, None, "")


def test_an_experiment_that_has_not_run_is_a_row():
    """What is still missing is in the rows, with the run it will have."""
    study = pair([0.0, 1.0], [0.0, 1.0])
    asked = experiment("int8", COQA)
    study.add(asked)
    (row,) = missing(rows_of(study))
    assert (row.variant, row.status, row.run_id) == ("int8", "missing", asked.run_id)


@pytest.mark.parametrize("why", ["failed", "missing"])
def test_without_a_baseline_there_is_a_value_and_no_difference(why):
    """A baseline that failed or has not run leaves the variant's value standing alone."""
    mean, samples = scored("coqa", "f1", [0.0, 1.0])
    study = MadeUpStudy()
    base = experiment(BASELINE, COQA)
    study.add(failed(base, "timeout", "too long") if why == "failed" else base)
    study.add(completed(experiment("nf4", COQA), mean), {"coqa": samples})
    (row,) = [row for row in rows_of(study) if row.metric]
    assert (row.value, row.baseline_value, row.difference, row.verdict) == (0.5, None, None, None)
    assert "baseline" in row.no_interval


def test_older_runs_are_told_as_reused():
    """A run that started before the study is marked as reused; without the study's start nobody knows."""
    study = pair([0.0, 1.0], [0.0, 1.0])
    known = replace(study.record, started_at="2026-11-21T00:00:00.000+00:00")
    assert {row.reused for row in rows(known, study.runs, study.read) if row.run_id} == {True}
    assert {row.reused for row in rows_of(study)} == {None}


def test_versions_that_differ_from_the_baselines_are_told():
    """A variant measured with another torch than its baseline says so."""
    study = MadeUpStudy()
    for label, version in ((BASELINE, "2.13.0"), ("nf4", "2.12.0")):
        study.add(completed(experiment(label, COQA), Measurement("coqa", "f1", 0.5), torch=version))
    assert single(study).provenance_differences == ("torch 2.12.0, the baseline 2.13.0",)


# -- the whole -------------------------------------------------------------------------------------------------------


def test_every_experiment_is_in_the_rows():
    """Whatever became of it, every experiment of the study has a row."""
    study = realistic_study()
    assert {row.run_id for row in rows_of(study)} == {asked.run_id for asked in study.experiments}


def test_samples_are_read_once_and_only_of_completed_runs():
    """A store on a slow disk is asked for each run's samples at most once."""
    study = realistic_study()
    asked = []
    rows(study.record, study.runs, lambda run_id: asked.append(run_id) or study.read(run_id))
    assert len(asked) == len(set(asked))
    assert all(study.runs[run_id].status == "completed" for run_id in asked)


def test_rows_are_json():
    """Every row can be written as JSON, values that are not finite too."""
    study = pair([0.0, 1.0], [math.inf, 1.0])
    for row in [*rows_of(study), *rows_of(realistic_study())]:
        json.dumps(row.to_json(), allow_nan=False)


def test_variants_start_with_the_baseline():
    """Variants come by model, the baseline first, each once."""
    study = MadeUpStudy()
    for label in ("nf4", BASELINE, "nf4"):
        study.add(experiment(label, COQA))
    assert [variant.quantizer.label for variant in variants(study.record)] == [BASELINE, "nf4"]


def test_a_record_survives_its_file():
    """A study's record is equal after JSON."""
    record = realistic_study().record
    assert StudyRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("damage", [{"schema_version": 99}, {"experiments": 3}, {"surprise": 1}, {"experiments": [{}]}])
def test_a_record_that_cannot_be_read_is_refused(damage):
    """A newer or damaged record is a StoreError, not a crash."""
    data = {**realistic_study().record.to_json(), **damage}
    with pytest.raises(StoreError):
        StudyRecord.from_json(data)
