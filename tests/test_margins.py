"""The largest acceptable loss: read as a user writes it, and one verdict over all tasks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from llmquant.cli.terminal import Terminal
from llmquant.errors import OptionError
from llmquant.planning.margins import unknown_margins
from llmquant.planning.resolve import resolve
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.results.comparison import Comparison
from llmquant.results.report.summary import summary
from llmquant.results.row import Row
from llmquant.results.rows import rows
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.margins import margin_of, read_margins
from llmquant.study.record import StudyRecord
from llmquant.study.run import GROUP, Measurement
from llmquant.study.study import Study
from made_up import BASELINE, MadeUpStudy, completed, experiment, failed, perplexity, scored


@pytest.mark.parametrize(
    ("given", "metric", "margin"),
    [
        (None, "f1", 0.02),
        (1, "acc_norm", 0.01),
        ("1.5%", "exact_match,flexible-extract", 0.015),
        (None, "perplexity", math.log(1.02)),
        (["perplexity=1%"], "word_perplexity", math.log(1.01)),
        (["perplexity=1%"], "nll_per_token", math.log(1.01)),
        (["perplexity=1%"], "ndcg_at_5", 0.02),
        ([3, "em=1", "bleu=0.5"], "em", 0.01),
        ([3, "em=1", "bleu=0.5"], "f1", 0.03),
        ([3, "em=1", "bleu=0.5"], "bleu", 0.5),
        (None, "bleu", None),
        (None, "kl_divergence", None),
    ],
)
def test_a_margin_is_in_the_units_of_its_metric(given, metric, margin):
    """Points for shares, percent for perplexity, own units for any other metric; no margin where none is given."""
    assert margin_of(metric, read_margins(given)) == pytest.approx(margin)


@pytest.mark.parametrize(
    "given",
    ["two", "-1", "101", "f1=200", "perplexity=2", "bleu=1%", "=", "1.2.3", True, [[2]], {"shares": "2"}, "nan"],
)
def test_a_margin_that_is_none_is_refused(given):
    """A text that is no margin, or one out of range, is named in the error."""
    with pytest.raises(OptionError, match="margin"):
        read_margins(given)


def test_margins_are_kept_with_the_study():
    """A study's margins come back from its file and its record; a record without margins has the defaults."""
    study = Study.of("org/m", margin=[1, "bleu=0.5"])
    assert Study.from_json(study.to_json()) == study
    record = MadeUpStudy().record
    data = record.to_json()
    assert StudyRecord.from_json(data).margins == record.margins
    del data["margins"]
    assert StudyRecord.from_json(data).margins == read_margins(None)


def judged(tasks: dict[str, tuple[list[float], list[float]]], *, lost: str = "", margin=None) -> Row:
    """Return the pooled row of one variant over tasks of F1."""
    study = MadeUpStudy()
    for label, place in ((BASELINE, 0), ("nf4", 1)):
        for task, scores in tasks.items():
            asked = experiment(label, f"lm_eval({task})")
            if lost == task and label != BASELINE:
                study.add(failed(asked, "error", "broken"))
                continue
            mean, samples = scored(task, "f1", scores[place])
            study.add(completed(asked, mean), {task: samples})
    (row,) = [row for row in rows(study.record, study.runs, study.read, read_margins(margin)) if row.pooled]
    return row


RNG = np.random.default_rng(0)
GOOD = RNG.random(400)
SAME = (GOOD, np.clip(GOOD + RNG.normal(0, 0.02, 400), 0, 1))
LOSS = (GOOD, np.clip(GOOD - 0.2, 0, 1))
FLOOR = (np.zeros(400), np.zeros(400))


def test_one_task_is_its_own_verdict():
    """The row over a single task has that task's difference, in points."""
    row = judged({"coqa": SAME})
    assert (row.verdict, row.unit, row.margin, row.mean_of) == ("no worse", "points", 2.0, ("coqa f1",))
    assert row.difference == pytest.approx(100 * (SAME[1] - SAME[0]).mean())


def test_tasks_count_the_same():
    """The row over two tasks is the mean of their differences, and wide enough for both."""
    row = judged({"coqa": SAME, "arc": LOSS})
    mean = 50 * ((SAME[1] - SAME[0]).mean() + (LOSS[1] - LOSS[0]).mean())
    assert row.difference == pytest.approx(mean)
    assert (row.verdict, row.real) == ("worse", "loss")


def test_a_task_at_the_floor_does_not_dilute_a_loss():
    """A task without signal is left out and named, instead of halving the loss of the others."""
    row = judged({"coqa": LOSS, "arc": FLOOR})
    assert row.difference == pytest.approx(100 * (LOSS[1] - LOSS[0]).mean())
    assert (row.mean_of, row.evaluator_note) == (("coqa f1",), "without arc (no signal)")


def test_a_metric_that_pairs_counts_before_one_that_does_not():
    """MRPC's F1 is of all documents together: its accuracy counts, and a loss of it is not left out."""
    study = MadeUpStudy()
    for label, scores in ((BASELINE, np.ones(400)), ("nf4", np.repeat([1.0, 0.0], 200))):
        mean, samples = scored("mrpc", "acc", scores)
        whole = Measurement("mrpc", "f1", 0.9, higher_is_better=True)
        study.add(completed(experiment(label, "lm_eval(mrpc)"), whole, mean), {"mrpc": samples})
    (row,) = [row for row in rows(study.record, study.runs, study.read) if row.pooled]
    assert (row.mean_of, row.verdict, row.no_interval) == (("mrpc acc",), "worse", "")


def test_only_floors_are_no_signal():
    """Where no task can distinguish anything, neither can all of them."""
    assert judged({"coqa": FLOOR, "arc": FLOOR}).verdict == "no signal"


def test_a_failed_task_leaves_no_verdict_over_all():
    """A variant that did not finish a task is not judged by the others, since the failure may be its loss."""
    row = judged({"coqa": SAME, "arc": SAME}, lost="arc")
    assert (row.verdict, row.no_verdict) == (None, "lm_eval(arc) did not finish")


def test_shares_and_perplexity_are_pooled_in_margins():
    """Differences of unlike units are measured in their margins: a ratio of 1.02 of perplexity is a loss of one."""
    study = MadeUpStudy()
    for label, scores, nll in ((BASELINE, SAME[0], 2.0), ("nf4", SAME[1], 2.0 + math.log(1.02))):
        mean, samples = scored("coqa", "f1", scores)
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
        means, samples = perplexity([nll + 0.01 * place for place in range(20)], [1] * 20)
        study.add(completed(experiment(label, "perplexity"), *means), {means[0].task: samples})
    (row,) = [row for row in rows(study.record, study.runs, study.read) if row.pooled]
    assert row.unit == "margins"
    assert row.difference == pytest.approx((-1 + (SAME[1] - SAME[0]).mean() / 0.02) / 2)


def test_a_score_without_a_margin_has_no_verdict_and_says_which_to_give():
    """BLEU is not judged until its margin is given."""
    study = MadeUpStudy()
    for label, scores in ((BASELINE, SAME[0]), ("nf4", SAME[1])):
        mean, samples = scored("wmt", "bleu", scores)
        study.add(completed(experiment(label, "lm_eval(wmt)"), mean), {"wmt": samples})
    (row,) = [row for row in rows(study.record, study.runs, study.read) if not row.is_baseline]
    assert row.verdict is None
    assert row.no_verdict == "bleu needs a margin: --margin bleu=NUMBER"
    known = Comparison(study.record, study.runs, study.read).at_margin("bleu=0.5")
    assert {row.verdict for row in known.rows() if not row.is_baseline} == {"no worse"}


def test_the_family_widens_intervals_and_raises_p_values():
    """Over several comparisons, Sidak's intervals are wider and Holm's p-values larger than those of one."""
    study = MadeUpStudy()
    for label, scores in ((BASELINE, SAME[0]), ("a", SAME[1]), ("b", LOSS[1]), ("c", LOSS[1] * 0.9)):
        mean, samples = scored("coqa", "f1", scores)
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
    compared = [row for row in rows(study.record, study.runs, study.read) if row.pairs and not row.pooled]
    assert len(compared) == 3
    for row in compared:
        assert None not in (row.sidak_low, row.sidak_high, row.p, row.p_holm)
        assert row.sidak_low < row.difference_low
        assert row.sidak_high > row.difference_high
        assert row.p <= row.p_holm <= 1


def test_repeated_perplexities_are_one_comparison():
    """Nats per token and bits per byte say what perplexity says: the family has one test per variant."""
    study = MadeUpStudy()
    nll = np.linspace(90, 110, 20)
    for label, values in ((BASELINE, nll), ("a", nll * np.tile([0.99, 1.02], 10))):
        measurements, windows = perplexity(values, [64] * 20)
        study.add(completed(experiment(label, "perplexity"), *measurements), {"perplexity": windows})
    compared = {row.metric: row for row in rows(study.record, study.runs, study.read) if row.pairs and not row.pooled}
    assert compared["perplexity"].p_holm == compared["perplexity"].p
    assert compared["bits_per_byte"].p is not None
    assert compared["bits_per_byte"].p_holm is None


def test_the_first_line_is_the_answer():
    """The first table of a study names the margin and every variant's verdict in one sentence."""
    study = MadeUpStudy()
    for label, scores in ((BASELINE, SAME[0]), ("int8", SAME[1]), ("nf4", LOSS[1])):
        mean, samples = scored("coqa", "f1", scores)
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
    first = summary(rows(study.record, study.runs, study.read), study.record)[0]
    assert first.title == "Verdict at a margin of 2 points: int8 is no worse; nf4 is worse."


def test_values_without_samples_are_left_out_of_the_verdict():
    """A metric without scores of documents is named as left out; alone it leaves no verdict."""
    study = MadeUpStudy()
    for label in (BASELINE, "nf4"):
        only = Measurement("group", "acc", 0.5, higher_is_better=True)
        study.add(completed(experiment(label, "lm_eval(group)"), only))
    (row,) = [row for row in rows(study.record, study.runs, study.read) if row.pooled]
    assert row.verdict is None
    assert "no scores of single documents" in row.no_verdict


def test_a_group_is_its_tasks():
    """The value of a group is not left out: its tasks are what counts."""
    study = MadeUpStudy()
    for label, place in ((BASELINE, 0), ("nf4", 1)):
        mean, samples = scored("a", "acc", SAME[place])
        total = Measurement("group", "acc", 0.5, higher_is_better=True)
        run = completed(experiment(label, "lm_eval(group)"), total, mean)
        study.add(replace(run, details={"group": {"no_scores": GROUP}}), {"a": samples})
    (row,) = [row for row in rows(study.record, study.runs, study.read) if row.pooled]
    assert (row.verdict, row.mean_of, row.evaluator_note) == ("no worse", ("a acc",), "")


@pytest.mark.parametrize(
    ("evaluators", "margin", "hint"),
    [
        (["lm_eval(coqa)", "memory"], "acc=2", "Known: em, f1."),
        (["lm_eval(gsm8k)"], "exact_match=2", "Did you mean 'exact_match,strict-match'"),
        (["memory"], "f1=2", "Add an evaluator of quality"),
        (["lm_eval(coqa)", "fidelity"], "acc=2", "Known: em, f1, ln_ppl_ratio."),
        (["lm_eval(coqa)", "drift(NanoNFCorpusRetrieval)"], "acc=2", None),
        (["lm_eval(arc_easy)"], "acc_norm=2", None),
        (["lm_eval(wikitext)"], "bits_per_byte=2", None),
        (["mteb(NanoNFCorpusRetrieval)"], "acc=2", "Known: ndcg_at_1,"),
    ],
)
def test_a_margin_is_for_a_score_of_the_study(evaluators, margin, hint):
    """Another score is refused with those there are, unless an evaluator knows its scores only after a run."""
    chosen = [registry().choose("evaluator", Call.parse(each)) for each in evaluators]
    errors = unknown_margins(read_margins(margin), chosen)
    assert len(errors) == (hint is not None)
    assert all(str(hint) in error.hint for error in errors)


def test_a_largest_loss_for_no_score_is_refused_before_the_start(monkeypatch, tiny_model, tmp_path):
    """--max-loss is checked with the plan, not when all results are there."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path))
    with open_executor("local(device=cpu)") as executor:
        planned = resolve(Study.of(tiny_model, "bf16_baseline", "memory"), registry(), Cache(tmp_path), executor)
        with pytest.raises(OptionError, match="margin is for 'f1', which is not measured"):
            Terminal("local", "results", quiet=True, max_loss=["f1=1"]).planned(planned, executor)
