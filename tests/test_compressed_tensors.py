"""compressed-tensors checkpoints are what vLLM documents, and contain what was requested."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("compressed_tensors")

import torch

from llmquant.errors import NotHonouredError, UnsupportedError
from llmquant.loading.memory import weight_bytes
from llmquant.models.info import inspect_model
from llmquant.quantizers.compressed_tensors.options import CompressedTensorsOptions
from llmquant.quantizers.compressed_tensors.quantizer import CompressedTensors
from llmquant.study.experiment import ModelRequest
from quantizing import quantize_once, stored_as_said, told

SCHEMES = {
    "w8a8": CompressedTensorsOptions("w8a8"),
    "w4a16": CompressedTensorsOptions("w4a16", 32),
    "fp8": CompressedTensorsOptions("fp8"),
}
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(params=SCHEMES)
def options(request):
    """Give the options of each scheme in turn."""
    return SCHEMES[request.param]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Keep what was quantized, by options; the first test that asks for it makes it."""
    made = {}
    return lambda options: made.setdefault(options, tmp_path_factory.mktemp(options.scheme))


@pytest.fixture
def load(tiny_model, context, checkpoints):
    """Return a function that quantizes the tiny model, once, and loads the result."""
    return lambda options: quantize_once(CompressedTensors(options), tiny_model, checkpoints(options), context())


def _logits(module):
    with torch.no_grad():
        return module(TOKENS).logits


def test_what_was_applied_reads_the_same_after_a_forward_pass(load, options):
    """The first pass dequantizes the weights; codes and groups are still seen in them."""
    model = load(options)
    assert model.applied.layers_quantized == 14
    assert model.applied.layers_left == ("lm_head",)
    _logits(model.module)
    assert told(CompressedTensors(options).applied(model.module)) == told(model.applied)


def test_predicted_weight_bytes_are_those_held(load, options):
    """As long as the model is used, that is after the first forward pass."""
    model = load(options)
    _logits(model.module)
    assert weight_bytes(model.module).total == pytest.approx(options.weight_bytes(model.info, "cpu"), rel=0.01)


def test_the_size_that_is_served_is_that_of_the_checkpoint(load, options, checkpoints):
    """It is predicted, and read back from the layers before and after the first pass dequantizes them."""
    model = load(options)
    served = model.applied.served_bytes
    tensors = sum(path.stat().st_size for path in checkpoints(options).glob("*.safetensors"))
    assert served == pytest.approx(options.served_bytes(model.info), rel=0.001)
    assert served == pytest.approx(tensors, rel=0.05)  # the header is small, but so is the model
    _logits(model.module)
    assert CompressedTensors(options).applied(model.module).served_bytes == pytest.approx(served, rel=0.001)


def test_elements_by_type_are_those_that_are_stored(load, options):
    """Packed words and scales take what the weights hold."""
    model = load(options)
    assert stored_as_said(model)


def test_weights_that_do_not_fit_their_scales_are_noticed(load, options):
    """Scales beside weights that were never rounded do not pass for a quantization."""
    model = load(options)
    _logits(model.module)
    layer = model.module.model.layers[1].mlp.up_proj
    layer.weight.data = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with pytest.raises(NotHonouredError, match="multiples"):
        CompressedTensors(options).applied(model.module)


def test_the_checkpoint_is_in_the_documented_layout(load, options):
    """Names, types and configuration are those that compressed-tensors and vLLM read."""
    from safetensors import safe_open

    path = load(options).path
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (config["quant_method"], config["ignore"]) == ("compressed-tensors", ["lm_head"])
    layout, inputs, tensors = {
        "w8a8": ("int-quantized", "int", {"weight": "I8", "weight_scale": "BF16"}),
        "fp8": ("float-quantized", "float", {"weight": "F8_E4M3", "weight_scale": "BF16"}),
        "w4a16": (
            "pack-quantized",
            None,
            {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"},
        ),
    }[options.scheme]
    assert config["format"] == group["format"] == layout
    assert (group["input_activations"] or {}).get("type") == inputs
    name = "model.layers.0.mlp.up_proj."
    with safe_open(path / "model.safetensors", "pt") as file:
        held = {key.removeprefix(name): file.get_slice(key).get_dtype() for key in file.keys() if name in key}  # noqa: SIM118
    assert held == tensors


def test_plain_transformers_gives_the_same_logits(load, options):
    """The folder needs nothing of llmquant."""
    from transformers import AutoModelForCausalLM

    model = load(options)
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.bfloat16)
    assert torch.equal(_logits(plain), _logits(model.module))


def test_codes_are_the_weights_in_units_of_their_scales(load, tiny_model):
    """Rounded to the nearest; the largest of a row uses the whole range."""
    from safetensors.torch import load_file

    name = "model.layers.0.mlp.up_proj.weight"
    held = load_file(load(SCHEMES["w8a8"]).path / "model.safetensors")
    steps = load_file(tiny_model / "model.safetensors")[name] / held[f"{name}_scale"].float()
    assert (held[name] - steps.clamp(-127.5, 127.5)).abs().max() <= 0.5001
    assert (held[name].int().abs().amax(1) >= 127).all()


def test_inputs_are_rounded_too_where_the_scheme_says_so(load, options):
    """With w8a8 and fp8 the loss has the loss of activations in it; w4a16 leaves them."""
    model = load(options)
    _logits(model.module)
    layer = model.module.model.layers[0].mlp.up_proj
    inputs = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        same = torch.equal(layer(inputs), torch.nn.functional.linear(inputs, layer.weight))
    assert same == (options.scheme == "w4a16")


def test_a_width_that_the_group_size_does_not_divide_is_refused(tiny_model, context):
    """With the group sizes that fit; schemes with a scale a row take any width."""
    info = inspect_model(ModelRequest(str(tiny_model)), context().cache)
    with pytest.raises(UnsupportedError, match="does not divide") as caught:
        CompressedTensorsOptions("w4a16", 128).check(info, "cpu")
    assert "32, 64" in caught.value.hint
    CompressedTensorsOptions("w8a8").check(info, "cpu")


def test_what_it_cannot_work_on_is_refused(tiny_model, context, options):
    """Quantized checkpoints, mixtures, and devices it is not run on."""
    info = inspect_model(ModelRequest(str(tiny_model)), context().cache)
    quantized = dataclasses.replace(info, config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    expert = dataclasses.replace(info.tensors[0], name="model.layers.0.mlp.experts.gate_up_proj")
    mixture = dataclasses.replace(info, tensors=(*info.tensors, expert))
    for model, device, reason in ((quantized, "cpu", "awq"), (mixture, "cpu", "experts"), (info, "mps", "mps")):
        with pytest.raises(UnsupportedError, match=reason):
            options.check(model, device)
