"""AutoRound's checkpoints are loaded by plain transformers, and contain what was requested."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("auto_round")

import torch

from llmquant.errors import NotHonouredError, OptionError, RequestError, UnsupportedError
from llmquant.loading.memory import weight_bytes
from llmquant.models.info import inspect_model
from llmquant.quantizers.auto_round.options import AutoRoundOptions
from llmquant.quantizers.auto_round.quantizer import AutoRound
from llmquant.study.experiment import ModelRequest
from quantizing import quantize_once, stored_as_said, told

TEXT = "".join(
    f"The keeper counted {n} ships before dawn and wrote their names into a green ledger. " for n in range(60)
)
FEW = {"iters": 2, "samples": 4, "sequence_length": 32, "calibration": (TEXT,)}
CASES = {bits: AutoRoundOptions(bits, group_size, **FEW) for bits, group_size in ((4, 64), (3, 32), (2, 32))}
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Keep what was quantized, by options; the first test that asks for it makes it."""
    made = {}
    return lambda options: made.setdefault(options, tmp_path_factory.mktemp("auto_round"))


@pytest.fixture
def load(tiny_model, context, checkpoints):
    """Return a function that quantizes the tiny model, once, and loads the result."""
    return lambda options: quantize_once(AutoRound(options), tiny_model, checkpoints(options), context())


def _logits(module):
    with torch.no_grad():
        return module(TOKENS).logits


@pytest.mark.parametrize("bits", CASES)
def test_bits_group_size_and_bytes_are_read_back(load, bits):
    """From the packed tensors, the same before and after a forward pass, and as large as predicted."""
    options = CASES[bits]
    model = load(options)
    assert model.applied.layers_quantized == 14
    assert model.applied.layers_left == ("lm_head",)
    assert stored_as_said(model)
    assert weight_bytes(model.module).total == pytest.approx(options.weight_bytes(model.info, "cpu"), rel=0.01)
    _logits(model.module)
    assert told(AutoRound(options).applied(model.module)) == told(model.applied)
    assert weight_bytes(model.module).total == pytest.approx(options.weight_bytes(model.info, "cpu"), rel=0.01)


def test_plain_transformers_gives_the_same_logits(load):
    """The folder needs nothing of llmquant, and lies where it was asked for."""
    from transformers import AutoModelForCausalLM

    model = load(CASES[4])
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.bfloat16)
    assert torch.equal(_logits(plain), _logits(model.module))
    assert json.loads((model.path / "config.json").read_text())["quantization_config"]["quant_method"] == "auto-round"


def test_fewer_bits_lose_more(load, tiny_model):
    """The logits move away from those of the original."""
    from transformers import AutoModelForCausalLM

    original = _logits(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)).float()
    losses = [float((_logits(load(CASES[bits]).module).float() - original).square().mean()) for bits in (4, 3, 2)]
    assert sorted(losses) == losses


def test_the_calibration_is_recorded(load):
    """With a digest of the tokens, for the checkpoint's recipe."""
    record = json.loads((load(CASES[4]).path / "calibration.json").read_text())
    assert (record["samples"], record["sequence_length"]) == (4, 32)


def test_a_model_that_is_not_packed_is_noticed(tiny_model):
    """An ordinary checkpoint under AutoRound's name is refused."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(NotHonouredError, match="packed"):
        AutoRound(CASES[4]).applied(AutoModelForCausalLM.from_pretrained(tiny_model))


def test_what_it_cannot_work_on_is_refused(tiny_model, context):
    """Quantized checkpoints, mixtures, other devices, widths that do not fit, texts that are too short."""
    info = inspect_model(ModelRequest(str(tiny_model)), context().cache)
    quantized = dataclasses.replace(info, config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    expert = dataclasses.replace(info.tensors[0], name="model.layers.0.mlp.experts.gate_up_proj")
    mixture = dataclasses.replace(info, tensors=(*info.tensors, expert))
    for model, device, reason in ((quantized, "cpu", "awq"), (mixture, "cpu", "experts"), (info, "mps", "mps")):
        with pytest.raises(UnsupportedError, match=reason):
            CASES[4].check(model, device)
    with pytest.raises(UnsupportedError, match="does not divide"):
        AutoRoundOptions(4, 128, **FEW).check(info, "cpu")
    with pytest.raises(RequestError, match="cannot fill"):
        dataclasses.replace(CASES[4], calibration=("too short",)).check(info, "cpu")


@pytest.mark.parametrize("wrong", [{"iters": 0}, {"group_size": 0}, {"samples": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    """Before a model is looked at."""
    with pytest.raises(OptionError, match=next(iter(wrong))):
        AutoRoundOptions(**wrong)
