"""The plugin's tests: what llmquant requires of every plugin, and what only this plugin promises."""

import pytest
import torch

from llmquant.testing import checks
from llmquant_example.hooks import llmquant_register
from llmquant_example.rtn import round_to_nearest

RTN, LOGLIKELIHOOD = llmquant_register()


test_preset = checks(RTN, "rtn_4bit_g32")
test_call = checks(RTN, "rtn(bits=3, group_size=16)", refused=["rtn(group_size=48)"])
test_evaluator = checks(LOGLIKELIHOOD, "loglikelihood_of(one text, another)")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_stays_within_half_a_step(bits):
    """No weight moves by more than half the distance between two codes of its group."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    groups = weight.reshape(-1, 32)
    half_a_step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1) / 2
    moved = (round_to_nearest(weight, bits, 32) - weight).reshape(-1, 32).abs().amax(1)
    assert (moved <= half_a_step * 1.001).all()
