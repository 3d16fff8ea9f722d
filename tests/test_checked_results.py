"""What evaluators yield is refused where it is not a result, with the plugin, the task and the field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from llmquant.errors import PluginError
from llmquant.running.checked_results import checked_results
from llmquant.study.run import Measurement, Result, Run, Sample
from made_up import BASELINE, completed, experiment

GOOD = Measurement("coqa", "f1", 0.5, higher_is_better=True, stderr=0.5, n=2)
SAMPLES = (Sample("a", "p", {"f1": 1.0}), Sample("b", "p", {"f1": 0.0}))


def result(measurement: Measurement = GOOD, samples=SAMPLES, **changes) -> Result:
    return replace(Result("coqa", [measurement], samples), **changes)


def check(*results):
    return list(checked_results(results, "mine/score"))


@dataclass(frozen=True)
class _Wider(Result):
    """A result with a field more."""

    extra: int = 0


def _nested(depth: int) -> dict:
    return {"a": _nested(depth - 1)} if depth else {}


def test_a_whole_result_passes_as_it_is():
    """Nothing of what an evaluator measured is changed."""
    (found,) = check(result())
    assert (found.task, found.measurements, found.samples) == ("coqa", (GOOD,), SAMPLES)


def test_numbers_of_numpy_become_numbers_of_python():
    """What is stored depends on the value alone, not on the package that it came from."""
    given = replace(GOOD, value=np.float32(0.5), stderr=np.float64(0.5), n=np.int64(2))
    samples = [Sample("a", "p", {"f1": np.float32(1)}), Sample("b", "p", {"f1": np.int8(0)}, occurrence=np.int64(0))]
    (found,) = check(result(given, samples))
    (measurement,) = found.measurements
    assert measurement == GOOD
    assert [type(x) for x in (measurement.value, measurement.stderr, measurement.n)] == [float, float, int]
    assert {type(score) for sample in found.samples for score in sample.scores.values()} == {float}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "0.5"),
        ("value", True),
        ("value", None),
        ("value", np.bool_(True)),
        ("value", np.array([0.5])),
        ("value", 10**400),
        ("value", 1j),
        ("stderr", -1),
        ("stderr", "0.1"),
        ("stderr", math.nan),
        ("stderr", math.inf),
        ("n", 200),
        ("n", 2.0),
        ("n", 0),
        ("n", True),
        ("n", "2"),
        ("unit", None),
        ("higher_is_better", 1),
        ("higher_is_better", "yes"),
        ("headline", None),
        ("metric", ""),
        ("task", None),
        ("at", {"batch": True}),
        ("at", {"batch": None}),
        ("at", {"batch": math.nan}),
        ("at", {1: 2}),
        ("at", [("batch", 1)]),
    ],
)
def test_a_wrong_field_of_a_measurement_is_named(field, value):
    """The error names the plugin, the task, the metric and the field."""
    with pytest.raises(PluginError, match=rf"mine/score, task 'coqa'.* metric '(f1)?'.*{field}"):
        check(result(replace(GOOD, **{field: value})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("document", ""),
        ("document", b"a"),
        ("prompt", None),
        ("scores", {"f1": "1.0"}),
        ("scores", {"f1": True}),
        ("scores", {"f1": None}),
        ("scores", [1.0]),
        ("answer", 42),
        ("target", ["42"]),
        ("group", None),
        ("occurrence", -1),
        ("occurrence", 0.0),
    ],
)
def test_a_wrong_field_of_a_sample_is_named(field, value):
    """So is what stands in a sample."""
    with pytest.raises(PluginError, match=rf"mine/score, task 'coqa'.*sample.*{field}"):
        check(result(samples=[replace(SAMPLES[0], **{field: value}), SAMPLES[1]]))


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ([], "yielded no result"),
        ([result(measurements=[])], "there are no measurements"),
        ([result(measurements=None)], "expected Measurements, found None"),
        ([result(measurements=[0.5])], "expected only Measurements, found 0.5"),
        ([result(samples=["a"])], "expected only Samples, found 'a'"),
        ([result(samples=3)], "expected Samples, found 3"),
        ([result(task=" ")], "task is ' '"),
        ([result(task=None)], "task is None"),
        ([{"task": "coqa"}], "yielded .* instead of a Result"),
        ([result(), result()], "a task is given twice: coqa"),
        ([result(measurements=[GOOD, GOOD])], "a number is given twice: f1 of coqa"),
        ([result(), result(task="squad")], "a number is given twice: f1 of coqa"),
        ([result(samples=[SAMPLES[0], SAMPLES[0]])], "a sample is given twice: a 0"),
        ([result(details={"module": object()})], "details is"),
        ([result(details={1: 2})], "details is"),
        ([result(details={"a": {1: 2, "1": 3}})], "details is"),
        ([result(details={"a": 10**5000})], "details is"),
        ([result(details={"a": _nested(60)})], "details is"),
        ([result(not_means="f1")], "not_means is 'f1'"),
        ([result(not_means=None)], "not_means is None"),
        ([_Wider("coqa", [GOOD])], "instead of a Result"),
        ([result(replace(GOOD, n=2**70))], "n is"),
        ([result(replace(GOOD, at={"x": 2**70}))], "at is"),
        ([result(details=["a"])], "details is"),
    ],
)
def test_what_is_missing_or_twice_is_named(results, complaint):
    """No result, no measurement, and a task, a number or a document twice are refused."""
    with pytest.raises(PluginError, match=f"mine/score.*{complaint}"):
        check(*results)


@pytest.mark.parametrize("returned", [None, 0.5, result()])
def test_what_is_no_list_of_results_is_refused(returned):
    """An evaluator that returns one result, or nothing, gets an error that asks it to yield."""
    with pytest.raises(PluginError, match=r"mine/score: evaluate returned .*\nYield one Result per task"):
        list(checked_results(returned, "mine/score"))


def test_what_passes_can_be_read_again():
    """A number larger than 64 bits, such as a count of operations, keys that are numbers, and nesting."""
    flops = Measurement("coqa", "flops", 2**70, at={"scale": 1e300})
    details = {"by batch": {1: 2**70}, "deep": _nested(40), "nan": math.nan}
    (found,) = check(Result("coqa", [flops], details=details))
    run = replace(completed(experiment(BASELINE, "e"), *found.measurements), details={"coqa": found.details})
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert again.measurements == (replace(flops, value=float(2**70)),)
    assert again.details["coqa"]["by batch"] == {"1": 2**70}


def test_the_same_number_under_other_conditions_is_another_number():
    """`at` tells numbers apart, and so does the occurrence of documents."""
    numbers = [Measurement("speed", "ms", 1.0, "ms", at={"batch": batch}) for batch in (1, "1", 1.5)]
    samples = [Sample("a", "p", {}), Sample("a", "p", {}, occurrence=1)]
    assert len(check(Result("speed", numbers, samples))) == 1


@pytest.mark.parametrize("value", [0.6, 0.501, -0.5, math.nan, math.inf])
def test_a_mean_that_contradicts_its_samples_is_refused(value):
    """The scores of the documents add up to the value."""
    with pytest.raises(PluginError, match=r"metric 'f1': value .* is not the mean of its 2 samples' scores"):
        check(result(replace(GOOD, value=value, stderr=None)))


def test_a_perplexity_that_contradicts_its_samples_is_refused():
    """Values that are made of documents' scores in another way are checked that way."""
    samples = [Sample("a", "p", {"nll": 10.0, "tokens": 5.0})]
    right = Measurement("text", "perplexity", math.exp(2), n=1)
    check(Result("text", [right], samples))
    with pytest.raises(PluginError, match="is not the mean"):
        check(Result("text", [replace(right, value=7.0)], samples))


def test_a_value_that_is_no_mean_can_be_said_to_be_none():
    """The BLEU of a corpus is not the mean of its documents' BLEU."""
    assert check(result(replace(GOOD, value=0.9), not_means=("f1",)))


def test_rounding_is_no_contradiction():
    """Evaluators add in float32, and mteb keeps five decimals."""
    assert check(result(replace(GOOD, value=0.500004)))


def test_values_that_are_not_finite_pass_with_their_samples():
    """A broken model has an infinite or undefined perplexity, and that is its result."""
    samples = [Sample("a", "p", {"f1": math.nan})]
    assert check(result(replace(GOOD, value=math.nan, stderr=math.nan, n=1), samples))
    huge = [Sample("a", "p", {"nll": 5000.0, "tokens": 5.0})]
    assert check(Result("text", [Measurement("text", "perplexity", math.inf, n=1)], huge))


def test_a_score_that_is_not_finite_beside_finite_values_is_refused():
    """A mean over documents of which one has no number is another mean than it says."""
    samples = [*SAMPLES, Sample("c", "p", {"other": math.nan})]
    with pytest.raises(PluginError, match="score 'other' of document 'c' is nan"):
        check(result(samples=samples))


def test_what_was_finished_comes_before_the_error():
    """Results are checked one by one, so that those before a wrong one can be kept."""
    found = checked_results([result(), result(task="")], "mine/score")
    assert next(found).task == "coqa"
    with pytest.raises(PluginError):
        next(found)


def test_a_generator_that_is_not_exhausted_is_closed():
    """Its ``finally`` runs when a result is refused, not at some later time."""
    ended = []

    def evaluate():
        try:
            yield None
        finally:
            ended.append(True)

    with pytest.raises(PluginError, match="yielded None"):
        list(checked_results((kept := evaluate()), "p/e"))
    assert ended
    del kept
