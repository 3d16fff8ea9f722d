"""Throughput: what is promised of its numbers, whatever they are on this machine."""

from __future__ import annotations

import pytest
import torch

from llmquant.errors import OptionError, UnsupportedError
from llmquant.evaluators.speed.generation_steps import Pass
from llmquant.evaluators.speed.options import ThroughputOptions
from llmquant.evaluators.speed.throughput import Throughput, _rates

METRICS = {"generated_tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s"}


def evaluate(subject, ctx, **options):
    small = {"prompt_tokens": 8, "new_tokens": 4, "warmup": 1, "repeats": 3}
    (result,) = Throughput(ThroughputOptions(**{**small, **options})).evaluate(subject, ctx)
    return result


def out_of_memory_from(subject, batch):
    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) >= batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    subject.module.register_forward_pre_hook(refuse, with_kwargs=True)


def test_every_metric_is_there_for_every_batch(subject, context):
    """Whole generation, decode and prefill, in tokens per second, with their conditions."""
    result = evaluate(subject, context())
    for batch in (1, 4, 8):
        at = {"prompt_tokens": 8, "new_tokens": 4, "batch": batch}
        assert {number.metric for number in result.measurements if number.at == at} == METRICS
    assert {number.unit for number in result.measurements} == {"tokens/s"}
    assert all(number.value > 0 and number.higher_is_better and number.n == 3 for number in result.measurements)


def test_rates_are_tokens_over_their_own_time():
    """Two sequences of 3 tokens, 10 ms of prompt and 2 + 4 + 4 ms of tokens."""
    rates = _rates(Pass(10.0, 2.0, (4.0, 4.0)), 2, ThroughputOptions(prompt_tokens=50, new_tokens=3))
    assert rates == {
        "generated_tokens_per_s": pytest.approx(2 * 3 / 0.020),
        "decode_tokens_per_s": pytest.approx(2 * 2 / 0.008),
        "prefill_tokens_per_s": pytest.approx(2 * 50 / 0.010),
    }


def test_a_batch_that_does_not_fit_leaves_the_smaller_ones(subject, context):
    """Out of memory at batch 8 is reported for it and for larger ones; 1 and 4 are measured."""
    out_of_memory_from(subject, 8)
    result = evaluate(subject, context(), batches=(16, 1, 4, 8))
    assert {number.at["batch"] for number in result.measurements} == {1, 4}
    assert result.details["did_not_fit"]["batches"] == [8, 16]
    assert "CUDA out of memory" in result.details["did_not_fit"]["error"]


def test_out_of_memory_at_the_first_batch_is_an_error(subject, context):
    """With nothing measured the run fails, and as out of memory."""
    out_of_memory_from(subject, 1)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(subject, context())


def test_another_error_at_a_larger_batch_is_not_hidden(subject, context):
    """Only a lack of memory means that a batch does not fit."""

    def fail(module, args, kwargs):
        if len(kwargs["input_ids"]) == 4:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    subject.module.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="mat1"):
        evaluate(subject, context())


def test_a_spent_budget_ends_the_repeats_at_three(subject, context):
    """However slow the machine, three repeats are made for every batch."""
    result = evaluate(subject, context(), repeats=50, budget_s=1e-9)
    assert [details["repeats"] for details in result.details["by_batch"].values()] == [3, 3, 3]


def test_every_repeats_rates_are_kept(subject, context):
    """A later study can compute intervals from the repeats."""
    details = evaluate(subject, context()).details["by_batch"]["4"]
    assert {metric: len(details[metric]) for metric in METRICS} == dict.fromkeys(METRICS, 3)


def test_sequences_beyond_the_models_positions_are_refused(subject):
    """The refusal names the longest prompt that fits."""
    with pytest.raises(UnsupportedError, match="1984"):
        ThroughputOptions(prompt_tokens=2000).check(subject.info, "cpu")


@pytest.mark.parametrize("wrong", [{"batches": (0, 1)}, {"batches": ()}, {"new_tokens": 1}, {"repeats": 0}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    """Constructing the options is enough to find the mistake."""
    with pytest.raises(OptionError, match=next(iter(wrong))):
        ThroughputOptions(**wrong)
