"""What reports say of verdicts: true, complete and readable in studies that are not as planned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from llmquant.cli.gate import Gate
from llmquant.errors import OptionError
from llmquant.results.comparison import Comparison
from llmquant.results.recommend import Limits
from llmquant.study.margins import points, read_margins
from made_up import BASELINE, HARDWARE, MadeUpStudy, completed, experiment, failed, memory, perplexity, scored

RIGHT = np.tile([1.0, 1.0, 0.0], 100)


def changed(count: int, *, lost: int = 0) -> np.ndarray:
    """Return right and wrong answers, of which some changed in both directions, and some more got wrong."""
    found = RIGHT.copy()
    found[: 3 * count] = np.tile([0.0, 1.0, 1.0], count)
    found[3 * count : 3 * (count + lost) : 3] = 0.0
    return found


def study(tasks: Mapping[str, Mapping[str, Sequence[float]]], **sizes: float) -> MadeUpStudy:
    """Make a study of accuracies by evaluator and variant; sizes are the variants' weights in MiB."""
    found = MadeUpStudy()
    for evaluator, scores in tasks.items():
        for label, own in scores.items():
            task = evaluator.removeprefix("lm_eval(").partition(")")[0].partition(",")[0]
            mean, samples = scored(task, "acc", own)
            found.add(completed(experiment(label, evaluator), mean), {task: samples})
    for label, size in sizes.items():
        found.add(completed(experiment(label, "memory", hardware=HARDWARE), *memory(size, 0, size, 8, 9)))
    return found


def compared(found: MadeUpStudy, margin: object = None) -> Comparison:
    record = replace(found.record, margins=read_margins(margin))
    return Comparison(record, found.runs, found.read)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("number", "text"), [(1, "1 point"), (2, "2 points"), (0.5, "0.5 points"), (0, "0 points")])
def test_one_point_is_singular(number, text):
    """A margin of 1 is one point, in the sentence and in the recommendation."""
    assert points(number) == text
    if number:
        said = flat(compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(20)}}), number).to_text())
        assert f"Verdict at a margin of {text}:" in said
        assert f"undecided at a margin of {text}," in said


def test_a_single_task_counts_alone():
    """Only several tasks count the same as each other."""
    one = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5)}})
    two = study({f"lm_eval({name})": {BASELINE: RIGHT, "nf4": changed(5)} for name in "tu"})
    assert "Over t acc; a negative" in flat(compared(one).to_text())
    assert "Over t acc and u acc, each task counting the same;" in flat(compared(two).to_text())


def test_variants_without_a_difference_have_no_unit(tmp_path):
    """Where a variant does not pair, the table has the unit of the others; JUnit gives the reason."""
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5)}})
    mean, samples = scored("t", "acc", changed(5), prompt="other")
    found.add(completed(experiment("fp4", "lm_eval(t)"), mean), {"t": samples})
    said = compared(found).to_text()
    assert "difference, points " in said
    assert "points or margins" not in said
    Gate(Limits(), junit=str(tmp_path / "j.xml")).exit_code(compared(found))
    written = (tmp_path / "j.xml").read_text()
    assert "no task can be compared: t (the baseline was given other prompts)" in written
    assert "timestamp" not in written  # the study has none


def test_no_signal_is_had_and_named(tmp_path):
    """A variant has no signal; the JUnit message names the tasks."""
    ones = np.ones(20)
    found = compared(study({"lm_eval(t)": {BASELINE: ones, "nf4": ones}}))
    assert "Verdict: nf4 has no signal." in found.to_text()
    Gate(Limits(), junit=str(tmp_path / "j.xml")).exit_code(found)
    assert 'message="no signal without t (no signal)"' in (tmp_path / "j.xml").read_text()


def test_a_worse_variant_has_its_difference_in_junit(tmp_path):
    """The message of a failed case has the difference with its interval, and never says *no worse*."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(0, lost=60)}}))
    assert Gate(Limits(), fail_on="worse", junit=str(tmp_path / "j.xml")).exit_code(found) == 3
    written = (tmp_path / "j.xml").read_text()
    assert 'message="worse over t acc: -20.0 [-2' in written
    assert "no worse" not in written


def test_one_task_of_two_evaluators_is_told_apart():
    """The pooled verdict names the evaluators of tasks with one name."""
    both = {BASELINE: RIGHT, "nf4": changed(5)}
    found = compared(study({"lm_eval(t)": both, "lm_eval(t, num_fewshot=5)": both}))
    assert "Over lm_eval(t) acc and lm_eval(t, num_fewshot=5) acc, each" in flat(found.to_text())
    assert "Verdict at a margin of 2 points:" in found.to_text()


def test_a_recommended_variant_that_is_worse_in_one_task_says_so():
    """Four tasks without a change outweigh one that got worse, and the reasons name it."""
    big, lost = np.tile(RIGHT, 10), np.tile(changed(0, lost=20), 10)
    tasks = {f"lm_eval({name})": {BASELINE: big, "nf4": lost if name == "a" else big} for name in "abcdefgh"}
    found = compared(study(tasks, **{BASELINE: 2000.0, "nf4": 800.0})).recommend()
    assert found.variant == "nf4"
    assert "but worse in a acc alone" in found.reasons


def test_several_changes_that_would_admit_a_variant_are_one_sentence():
    """Without a variant left, the advice starts with a capital and has none inside."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": RIGHT}}, **{BASELINE: 2000.0, "nf4": 800.0}))
    advice = found.recommend(max_memory="1MiB", max_latency=1.0)
    assert advice.relax == "Allow 809.0 MiB of memory for nf4 and add -e latency, or -e query_latency for an embedder."


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_broken_perplexity_is_named(broken):
    """A perplexity that is infinite or not a number is the reason why there is no verdict."""
    nll = np.linspace(100, 120, 12)
    found = MadeUpStudy()
    for label, values in ((BASELINE, nll), ("nf4", np.where(np.arange(12) == 3, broken, nll))):
        measurements, windows = perplexity(values, [64] * 12)
        found.add(completed(experiment(label, "perplexity"), *measurements), {"perplexity": windows})
    said = flat(compared(found).to_text())
    assert "nf4: not judged, as perplexity is not a finite number." in said
    assert "No interval for perplexity: the value is not a finite number." in said


def test_documents_missing_in_the_variant_are_said():
    """A variant scored on fewer documents than its baseline is compared on those that pair, and the table says so."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5)[:200]}}))
    assert "nf4, t acc: compared on 200 documents in common." in flat(found.to_text())


def test_a_margin_of_zero_has_a_true_reason():
    """A perplexity with a margin of 0 cannot be pooled in margins, also where it is the only task."""
    nll = np.linspace(100, 120, 12)
    found = MadeUpStudy()
    for label, values in ((BASELINE, nll), ("nf4", nll * 1.01)):
        measurements, windows = perplexity(values, [64] * 12)
        found.add(completed(experiment(label, "perplexity"), *measurements), {"perplexity": windows})
    said = flat(compared(found, "perplexity=0%").to_text())
    assert "not judged, as perplexity has a margin of 0, which no difference can be counted in." in said


def test_the_pareto_front_has_one_unit():
    """A variant without the perplexity is judged in points, but placed in margins beside the others."""
    nll = np.linspace(100, 120, 12)
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5), "fp4": changed(5, lost=12)}})
    for label, values in ((BASELINE, nll), ("nf4", nll * 1.001)):
        measurements, windows = perplexity(values, [64] * 12)
        found.add(completed(experiment(label, "perplexity"), *measurements), {"perplexity": windows})
    fp4 = next(point for point in compared(found).pareto() if point.variant == "fp4")
    assert (fp4.unit, fp4.gain) == ("margins", pytest.approx(-4 / 2))


def test_a_recommendation_names_the_loss_it_accepts():
    """With another largest loss than the margin, the reasons name it, not the margin."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(10, lost=20)}}))
    assert "undecided at a margin of 5 points, and a loss of up to" in found.recommend(max_loss=5).ruled_out["nf4"]


def test_a_margin_for_a_score_that_was_not_measured_is_refused():
    """A misspelt metric is named, instead of a margin that decides nothing."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5)}}))
    assert found.at_margin("acc=1").rows()
    with pytest.raises(OptionError, match="'accc', which is not measured"):
        found.at_margin("accc=1")


def test_documents_that_a_task_does_not_have_are_said():
    """Where a verdict needs more documents than there are, the note has their number."""
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(20)}})
    for run_id, run in found.runs.items():
        found.runs[run_id] = replace(run, details={"t": {"documents_total": 400}})
    assert "(now 300; there are 400)" in flat(compared(found).to_text())


def test_a_real_loss_of_an_undecided_task_is_a_footnote():
    """The table of quality names the losses whose interval excludes zero, whatever the verdict."""
    said = flat(compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(0, lost=8)}})).to_text())
    assert "whatever the verdict: nf4 in t acc." in said


@pytest.mark.parametrize("lacking", ["failed", "missing"])
def test_what_the_baseline_lacks_is_not_passed_over(lacking):
    """A variant is not judged over the tasks that are left where a run of the baseline failed or is missing."""
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": RIGHT}})
    mean, samples = scored("u", "acc", RIGHT)
    found.add(completed(experiment("nf4", "lm_eval(u)"), mean), {"u": samples})
    asked = experiment(BASELINE, "lm_eval(u)")
    found.add(failed(asked, "error", "broken") if lacking == "failed" else asked)
    assert "nf4: not judged, as lm_eval(u) of the baseline did not finish." in compared(found).to_text()
    code = Gate(Limits(), fail_on="undecided").exit_code(compared(found))
    assert code == {"failed": 1, "missing": 4}[lacking]


def test_a_gate_over_stored_results_fails_with_a_failed_run():
    """A stored study with a failed run exits with 1, as the command that ran it did."""
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": RIGHT}})
    found.add(failed(experiment("fp4", "lm_eval(t)"), "error", "broken"))
    assert Gate(Limits(), fail_on="worse").exit_code(compared(found)) == 1
    assert Gate(Limits()).exit_code(compared(found)) == 0


def test_an_infinite_perplexity_is_not_outweighed():
    """A variant that broke in one task is not judged by the others."""
    nll = np.linspace(100, 120, 12)
    found = study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": RIGHT}})
    for label, values in ((BASELINE, nll), ("nf4", np.where(np.arange(12) == 3, math.inf, nll))):
        measurements, windows = perplexity(values, [64] * 12)
        found.add(completed(experiment(label, "perplexity"), *measurements), {"perplexity": windows})
    assert Gate(Limits(), fail_on="undecided").exit_code(compared(found)) == 4


def test_a_margin_that_decided_nothing_is_noted():
    """A study that ran with a margin for a misspelt metric says that no such score was measured."""
    found = compared(study({"lm_eval(t)": {BASELINE: RIGHT, "nf4": changed(5)}}), "accc=1")
    assert "The margin for accc decides nothing: no such score was measured." in flat(found.to_text())
