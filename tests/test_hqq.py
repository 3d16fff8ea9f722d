"""HQQ's presets do what they say, take the memory that was predicted, and can be read back."""

from __future__ import annotations

import pytest

from llmquant.errors import NotHonouredError, UnsupportedError
from llmquant.quantizers.hqq.options import HqqOptions
from quantizing import load_as, logits, made_up, write_untied

pytest.importorskip("hqq")

ALL = {
    "hqq_8bit": HqqOptions(8, 32),
    "hqq_4bit": HqqOptions(4, 32),
    "hqq_4bit_float32": HqqOptions(4, 32, "float32"),
    "hqq_3bit": HqqOptions(3, 32),
    "hqq_2bit": HqqOptions(2, 32),
}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Return the two models by name."""
    return {"tied": tiny_model, "untied": write_untied(tmp_path_factory.mktemp("untied"), tiny_model)}


@pytest.fixture
def load(folders, context):
    """Return a function that loads a model under some options."""

    def run(options, name="tied"):
        from llmquant.quantizers.hqq.quantizer import Hqq

        return load_as(Hqq, options, folders[name], context())

    return run


def test_logits_are_those_of_hqqs_own_layers(load, folders):
    """Swapping HQQ's layers into the loaded model by hand, its documented way, gives the same numbers."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM

    by_hand = AutoModelForCausalLM.from_pretrained(folders["untied"], dtype=torch.float32)
    for name, layer in list(by_hand.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            config = BaseQuantizeConfig(nbits=4, group_size=32, axis=1)
            quantized = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
            by_hand.model.set_submodule(name, quantized)
    assert torch.allclose(logits(load(HqqOptions(4, 32, "float32"), "untied").module), logits(by_hand), atol=1e-4)


def test_hqq_is_closer_than_rounding(load, folders):
    """Its refined zero points lose less than those of round-to-nearest, by the error that it minimises."""
    import torch
    from hqq.core.quantize import Quantizer
    from safetensors.torch import load_file

    weight = load_file(folders["untied"] / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]

    def error(*, optimize):
        codes, meta = Quantizer.quantize(
            weight, 4, group_size=32, axis=1, optimize=optimize, device="cpu", compute_dtype=torch.float32
        )
        restored = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
        return (restored - weight).abs().pow(0.7).sum()

    assert error(optimize=True) < error(optimize=False)


@pytest.mark.parametrize("options", ALL.values())
def test_saving_is_refused_before_loading(options):
    """Transformers loads no checkpoint of HQQ."""
    with pytest.raises(UnsupportedError, match="none is written"):
        options.check_save("cpu")


def test_a_layer_that_is_not_quantized_is_found():
    """What was replaced and never filled is not called quantized."""
    import torch

    from llmquant.quantizers.hqq.quantizer import Hqq, HqqLinear

    with pytest.raises(NotHonouredError, match="0 of 1"):
        Hqq(HqqOptions()).applied(torch.nn.Sequential(HqqLinear(torch.nn.Linear(16, 16))))


@pytest.mark.parametrize(
    ("options", "shape", "told"),
    [(HqqOptions(4, 128), (64, 64), r"up_proj(.|\n)*32, 64"), (HqqOptions(2, 64), (6, 64), r"up_proj.*6 x 64.*4 x 1")],
)
def test_widths_that_do_not_fit_are_refused(options, shape, told):
    """Naming the layer and what would fit."""
    with pytest.raises(UnsupportedError, match=told):
        options.check(made_up(*shape), "cpu")
