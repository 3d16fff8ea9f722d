"""The noise floor of fidelity: the baseline in another dtype, without a second copy and without a trace."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmquant.evaluators.fidelity.evaluator import Fidelity
from llmquant.evaluators.fidelity.options import FidelityOptions
from llmquant.evaluators.fidelity.precision import computing_in
from llmquant.study.experiment import InputFile
from llmquant.study.run import REFERENCE_FILE
from subjects import load_subject

IDS = torch.arange(60).reshape(2, 30)


@torch.no_grad()
def logits(module):
    return module(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("loaded", "other"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_a_model_computes_as_if_loaded_in_the_other_dtype(tiny_model, loaded, other):
    """Equal to the bit to the weights in the first dtype loaded in the second."""
    module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=loaded).eval()
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=other).eval()
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
            theirs.copy_(mine)
    with computing_in(module, other):
        found = logits(module)
    assert found.dtype == other
    assert torch.equal(found, logits(expected))


def test_nothing_of_the_other_dtype_is_left(tiny_model):
    """Weights, and what the model computes, are as before, also after an error inside."""
    module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    weights = {name: (p.data_ptr(), p.dtype) for name, p in module.named_parameters()}
    before = logits(module)
    with pytest.raises(IndexError), computing_in(module, torch.bfloat16):
        module(input_ids=IDS + 1_000_000)
    module.model.layers[1].mlp.act_fn.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError), computing_in(module, torch.bfloat16):
        logits(module)
    module.model.layers[1].mlp.act_fn._forward_hooks.clear()
    assert {name: (p.data_ptr(), p.dtype) for name, p in module.named_parameters()} == weights
    assert torch.equal(logits(module), before)


def _fail(*_):
    raise ZeroDivisionError


def test_a_variant_at_the_floor_has_no_excess(tiny_model, context, tmp_path):
    """The baseline loaded in the floor's dtype diverges by exactly the floor."""
    torch.set_num_threads(1)
    path = tmp_path / "text.txt"
    path.write_text("the miller counted sacks and the sacks counted days " * 40, encoding="utf-8")
    options = FidelityOptions(InputFile.read(path), window=32, batch_size=2)
    baseline = load_subject(tiny_model, context().cache)
    before = tmp_path / "before"
    (first,) = Fidelity(options).evaluate(baseline, context(files=before))
    baseline.module.to(torch.bfloat16)
    (second,) = Fidelity(options).evaluate(baseline, context(reference=before / REFERENCE_FILE))
    floors = [next(m.value for m in result.measurements if m.metric == "kl_floor") for result in (first, second)]
    excess, divergence = (
        next(m.value for m in second.measurements if m.metric == name and not m.at)
        for name in ("kl_excess", "kl_divergence")
    )
    assert floors[0] == floors[1] > 0
    assert second.details["floor_dtype"] == "bfloat16"
    assert divergence == pytest.approx(floors[0], rel=0.2)
    assert abs(excess) < 0.2 * floors[0]
