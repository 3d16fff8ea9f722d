"""What llmquant requires of every quantizer, one line per check, and what only this quantizer promises."""

import torch
from llmquant.testing import checks

from llmquant_sinq.plugin import llmquant_register
from llmquant_sinq.quantizer import PackedLinear

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "sinq(group_size=16)", refused=["sinq(48)", "sinq(3)"])


@torch.no_grad()
def test_a_large_column_costs_less_than_without_its_scale():
    """The other columns keep their precision: their error is less than half of that of plain rounding."""
    layer = torch.nn.Linear(64, 64)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    layer.weight[:, 0] *= 20
    sinq = PackedLinear.quantized(layer, 64)
    moved = (sinq.weight().float() - layer.weight).abs()[:, 1:].mean()
    step = (layer.weight.amax(1) - layer.weight.amin(1)).mean() / 15
    assert moved < step / 4 / 2  # rounding moves a weight by a quarter of a step on average
