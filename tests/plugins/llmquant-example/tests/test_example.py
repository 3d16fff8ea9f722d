"""The plugin's tests: what llmquant requires of every plugin, and what only this plugin promises."""

import pytest
import torch

from llmquant.testing import check_evaluator, check_quantizer, check_spec
from llmquant_example.hooks import llmquant_register
from llmquant_example.rtn import round_to_nearest

RTN, LOGLIKELIHOOD = llmquant_register()


@pytest.mark.parametrize("spec", [RTN, LOGLIKELIHOOD], ids=lambda spec: spec.name)
def test_the_specs_conform(spec):
    """They are light, and every preset builds."""
    check_spec(spec)


@pytest.mark.parametrize("call", ["rtn_4bit_g32", "rtn(bits=3, group_size=16)"])
def test_the_plugins_conform(call, tiny_model, tmp_path):
    """A tiny checkpoint is quantized as requested, and two evaluations give the same result."""
    subject = check_quantizer(RTN, call, tiny_model, tmp_path / "quantizer")
    (result,) = check_evaluator(LOGLIKELIHOOD, "loglikelihood_of(one text, another)", subject, tmp_path / "evaluator")
    assert result.measurements[0].n == 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_stays_within_half_a_step(bits):
    """No weight moves by more than half the distance between two codes of its group."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    groups = weight.reshape(-1, 32)
    half_a_step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1) / 2
    moved = (round_to_nearest(weight, bits, 32) - weight).reshape(-1, 32).abs().amax(1)
    assert (moved <= half_a_step * 1.001).all()
