"""Latency: what is promised of its numbers, whatever they are on this machine."""

from __future__ import annotations

import gc
import json
import logging

import pytest
import torch

from llmquant.errors import OptionError, RunError, UnsupportedError
from llmquant.evaluators.speed.generation_steps import Generation, random_prompts, time_pass, undisturbed
from llmquant.evaluators.speed.latency import Latency
from llmquant.evaluators.speed.options import LatencyOptions
from llmquant.study.experiment import Documents
from subjects import load_subject

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
METRICS = {f"{name}{suffix}" for name in ("prefill_ms", "ttft_ms", "decode_ms_per_token") for suffix in ("", "_p95")}
SMALL = {"prompt_tokens": (8, 16), "decode_tokens": 4, "warmup": 1, "repeats": 3}


def evaluate(subject, ctx, **options):
    (result,) = Latency(LatencyOptions(**{**SMALL, **options})).evaluate(subject, ctx)
    return result


def test_every_metric_is_there_for_every_prompt_length(subject, context):
    """Median and 95th percentile in milliseconds, with the conditions they hold under."""
    result = evaluate(subject, context(), batch=2)
    for length in (8, 16):
        at = {"prompt_tokens": length, "batch": 2}
        assert {number.metric for number in result.measurements if number.at == at} == METRICS
    assert {number.unit for number in result.measurements} == {"ms"}
    assert {number.higher_is_better for number in result.measurements} == {False}


def test_times_are_in_their_only_possible_order(subject, context):
    """A first token takes longer than its prompt alone, and no median is above its 95th percentile."""
    numbers = {n.metric: n.value for n in evaluate(subject, context(), prompt_tokens=(8,)).measurements}
    assert 0 < numbers["prefill_ms"] < numbers["ttft_ms"]
    assert all(numbers[name] <= numbers[f"{name}_p95"] for name in ("prefill_ms", "ttft_ms", "decode_ms_per_token"))


def test_n_counts_repeats_and_steps(subject, context):
    """A prefill counts once per repeat, a token once per step."""
    numbers = {n.metric: n.n for n in evaluate(subject, context(), prompt_tokens=(8,)).measurements}
    assert (numbers["prefill_ms"], numbers["decode_ms_per_token"]) == (3, 3 * 4)


def test_medians_claim_no_standard_error(subject, context):
    """Repeats inside one process say nothing of the next process."""
    assert {number.stderr for number in evaluate(subject, context()).measurements} == {None}


def test_every_single_step_is_kept(subject, context):
    """A later study can compute what it wants from the steps' file."""
    ctx = context()
    result = evaluate(subject, ctx)
    steps = json.loads((ctx.files / result.details["steps_file"]).read_text())["decode_ms"]
    assert {length: [len(one) for one in repeats] for length, repeats in steps.items()} == {
        "8": [4, 4, 4],
        "16": [4, 4, 4],
    }


def test_a_spent_budget_ends_the_repeats_at_three(subject, context):
    """However slow the machine, three repeats are made, and the details say how many were wanted."""
    result = evaluate(subject, context(), prompt_tokens=(8,), repeats=50, warmup=50, budget_s=1e-9)
    details = result.details["by_prompt_tokens"]["8"]
    assert (details["repeats"], details["repeats_wanted"], details["warmup"]) == (3, 50, 1)


def test_a_budget_that_is_not_spent_ends_nothing(subject, context):
    """All repeats are made when there is time."""
    assert evaluate(subject, context(), repeats=5).details["by_prompt_tokens"]["16"]["repeats"] == 5


def test_progress_reaches_its_end_even_when_the_budget_cuts(subject, context):
    """Whoever watches sees it grow and finish."""
    from dataclasses import replace

    seen = []
    evaluate(subject, replace(context(), progress=lambda *at: seen.append(at)), repeats=50, budget_s=1e-9)
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)


def test_a_prompt_that_does_not_fit_leaves_the_shorter_ones(subject, context):
    """Out of memory at one length is reported for it and for longer ones; it fails nothing."""

    def refuse(module, args, kwargs):
        if kwargs["input_ids"].shape[1] >= 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    subject.module.register_forward_pre_hook(refuse, with_kwargs=True)
    result = evaluate(subject, context(), prompt_tokens=(32, 8, 16))
    assert {number.at["prompt_tokens"] for number in result.measurements} == {8}
    assert result.details["did_not_fit"]["prompt_tokens"] == [16, 32]


def test_steps_generate_what_generate_does(subject):
    """Greedy tokens of the timed steps are those of transformers' own generation."""
    prompts = random_prompts(subject, batch=1, tokens=12, seed=3)
    with torch.inference_mode():
        generation = Generation(subject.module)
        generation.prefill(prompts)
        tokens = [generation.pick()]
        for _ in range(5):
            tokens.append(generation.step(tokens[-1]))
        expected = subject.module.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, do_sample=False, eos_token_id=-1
        )
    assert torch.cat(tokens, dim=1).tolist() == expected[:, 12:].tolist()


def test_prefill_computes_the_last_logits_alone(subject):
    """As in serving, the head is not asked for the prompt's other positions."""
    generation = Generation(subject.module)
    shapes = []
    subject.module.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
    with torch.inference_mode():
        generation.prefill(random_prompts(subject, batch=2, tokens=12, seed=0))
    assert generation.last_only
    assert shapes == [(2, 1)]


def test_prompts_have_no_special_tokens_and_follow_the_seed(subject):
    """Equal seeds give equal prompts, other seeds others; none holds an end of text."""
    first, again, other = (random_prompts(subject, batch=4, tokens=400, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not set(first.flatten().tolist()) & set(subject.tokenizer.all_special_ids)


def test_a_model_that_keeps_no_cache_is_refused(subject):
    """Without a cache there is no prefill to tell from decode."""
    forward = subject.module.forward
    subject.module.forward = lambda **given: forward(**{**given, "use_cache": False})
    with pytest.raises(RunError, match="cache"), torch.inference_mode():
        Generation(subject.module).prefill(random_prompts(subject, batch=1, tokens=4, seed=0))


def test_measuring_leaves_the_process_as_it_was():
    """The garbage collector and logging are off inside and as before outside, also after an error."""
    log = logging.getLogger("bitsandbytes")
    seen = []

    def fail_inside():
        with undisturbed():
            seen.append((gc.isenabled(), log.isEnabledFor(logging.WARNING)))
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert seen == [(False, False)]
    assert gc.isenabled()
    assert log.isEnabledFor(logging.WARNING)


@pytest.mark.gpu
@needs_cuda
def test_cuda_events_time_every_step(tiny_model, context):
    """On a GPU each step has a positive time, and the times are no longer than the wall clock's."""
    import time

    subject = load_subject(tiny_model, context().cache, device="cuda")
    prompts = random_prompts(subject, batch=1, tokens=16, seed=0)
    with torch.inference_mode():
        time_pass(subject, prompts, decode_steps=4)
        start = time.perf_counter()
        one = time_pass(subject, prompts, decode_steps=4)
        wall_ms = 1000 * (time.perf_counter() - start)
    assert len(one.decode_ms) == 4
    assert min(one.prefill_ms, *one.decode_ms) > 0
    assert one.total_ms <= wall_ms


def test_prompts_beyond_the_models_positions_are_refused(subject):
    """The refusal names the longest prompt that fits."""
    with pytest.raises(UnsupportedError, match="1920"):
        LatencyOptions(prompt_tokens=(128, 2000)).check(subject.info, "cpu")
    LatencyOptions(prompt_tokens=(1920,)).check(subject.info, "cpu")


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": ()}, {"prompt_tokens": (8, 8)}, {"repeats": 0}, {"budget_s": 0.0}, {"warmup": 0}]
)
def test_sizes_that_make_no_sense_are_refused(wrong):
    """Constructing the options is enough to find the mistake."""
    with pytest.raises(OptionError, match=next(iter(wrong))):
        LatencyOptions(**wrong)


def test_the_cost_is_the_work_of_all_repeats(subject):
    """An estimate counts every prompt and every step, warm-up prompts included."""
    cost = LatencyOptions(**SMALL, batch=2).cost(subject.info, Documents())
    assert (cost.prefill_tokens, cost.decode_tokens) == ((8 + 16) * 2 * 4, 2 * 4 * 3)
