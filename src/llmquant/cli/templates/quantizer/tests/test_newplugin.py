"""What llmquant requires of every quantizer, one line per check, and what only this quantizer promises."""

import torch
from llmquant.testing import checks

from llmquant_newplugin.plugin import llmquant_register
from llmquant_newplugin.quantizer import PackedLinear

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "newplugin(group_size=16)", refused=["newplugin(48)", "newplugin(3)"])


def test_weights_move_by_half_a_step():
    """No weight moves by much more than half the distance between two codes; bfloat16 rounds scale and offset."""
    layer = torch.nn.Linear(64, 16)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    packed = PackedLinear.quantized(layer, 32)
    moved = (packed.weight().float() - layer.weight).abs().reshape(16, -1, 32)
    assert (moved <= 0.6 * packed.scale.float()).all()
