"""Packed layers are read back as they are, whatever their settings claim and however a kernel repacks them."""

from __future__ import annotations

import copy
import functools

import pytest

from classic_checkpoints import write_awq, write_gptq
from llmquant.errors import NotHonouredError
from llmquant.loading.checked_applied import check_applied
from quantizing import told

pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")

# How it is written, and what must be found: method, bits, group size.
CASES = {
    "zero_points": ({}, ("gptq", 4.0, 32)),
    "symmetric": ({"symmetric": True}, ("gptq", 4.0, 32)),
    "ordered": ({"act_order": True}, ("gptq", 4.0, 32)),
    "two_bits": ({"bits": 2}, ("gptq", 2.0, 32)),
    "three_bits": ({"bits": 3, "symmetric": True}, ("gptq", 3.0, 32)),
    "eight_bits": ({"bits": 8, "symmetric": True}, ("gptq", 8.0, 32)),
    "as_wide_as_some_layers": ({"group_size": 64}, ("gptq", 4.0, 64)),
    "whole_rows": ({"group_size": -1, "symmetric": True}, ("gptq", 4.0, None)),
    "awq": (None, ("awq", 4.0, 32)),
}
SYMMETRIC = {name for name, (options, _) in CASES.items() if options and options.get("symmetric")}


@pytest.fixture(scope="module")
def load(tiny_model, tmp_path_factory):
    """Return a function that writes a checkpoint of a case and loads it, once; each takes half a second."""
    import torch

    from llmquant.quantizers.gptqmodel.settings import prepare_environment

    prepare_environment("cpu")
    from transformers import AutoModelForCausalLM

    @functools.cache
    def run(name, dtype=torch.bfloat16):
        folder = tmp_path_factory.mktemp("packed") / name
        options = CASES[name][0] if name in CASES else {"group_size": -1}
        if options is None:
            write_awq(tiny_model, folder)
        else:
            write_gptq(tiny_model, folder, weights="model.safetensors", **options)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    return run


def _read(module):
    from llmquant.quantizers.gptqmodel.layers import read_gptqmodel_layers

    return read_gptqmodel_layers(module)


@pytest.mark.parametrize("name", CASES)
def test_packed_layers_are_read_back(load, name):
    """Method, bits and group size are those the checkpoint was written with, in every layer but the head."""
    module = load(name)
    applied = _read(module)
    check_applied(applied, module, name)
    assert (applied.method, applied.bits, applied.block_size) == CASES[name][1]
    assert (applied.layers_quantized, applied.layers_left) == (14, ("lm_head",))


@pytest.mark.parametrize("name", CASES)
def test_order_and_symmetry_are_read_from_the_tensors(load, name):
    """The layers' own settings are not asked: loading through optimum exchanges the two."""
    note = _read(load(name)).note
    assert ("desc_act" in note) == (name == "ordered")
    assert ("symmetric" in note) == (name in SYMMETRIC)


@pytest.mark.parametrize("name", CASES)
def test_layers_read_the_same_after_a_forward_pass(load, name):
    """A kernel may repack its layer in the first pass; nobody who reads it notices."""
    import torch

    module = copy.deepcopy(load(name))
    before = _read(module)
    with torch.no_grad():
        module(torch.arange(3, 20)[None])
    assert told(_read(module)) == told(before)


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_packed_layer_counts_as_a_buffer(load, name):
    """Neither before nor after a kernel has made its own copies of scales, zero points and indices in a first pass."""
    import torch

    from llmquant.loading.memory import weight_bytes

    module = copy.deepcopy(load(name))
    rotary = sum(buffer.nbytes for key, buffer in module.named_buffers() if "rotary" in key)
    before = weight_bytes(module)
    with torch.no_grad():
        module(torch.arange(3, 20)[None])
    after = weight_bytes(module)
    assert before.buffers == after.buffers == rotary
    assert before.parameters == after.parameters
    assert after.quantization_state > 0


def test_the_compute_type_is_the_kernels(load):
    """The 4-bit product for CPUs multiplies in bfloat16, whatever the model's type; unpacked layers in the model's."""
    import torch

    assert _read(load("symmetric", torch.float32)).compute_dtype == "bfloat16"
    assert _read(load("three_bits", torch.float32)).compute_dtype == "float32"


def test_settings_that_the_tensors_contradict_are_refused(load):
    """A layer that claims other bits or groups than it holds was loaded wrongly."""
    module = copy.deepcopy(load("symmetric"))
    layer = module.model.layers[1].mlp.up_proj
    layer.bits = 8
    with pytest.raises(NotHonouredError, match=r"mlp.up_proj declares 8 bits, but holds 4 bits per weight"):
        _read(module)
    layer.bits, layer.group_size = 4, 16
    with pytest.raises(NotHonouredError, match="has 2 scales per row; a group size of 16 needs 4"):
        _read(module)


def test_a_kernel_that_drops_zero_points_is_refused(load):
    """For whole rows on a CPU GPTQModel takes a kernel that computes without them, and says nothing."""
    with pytest.raises(NotHonouredError, match="has zero points, which GPTQModel's kernel TorchFusedLinear ignores"):
        _read(load("whole_rows_with_zero_points"))


def test_a_model_without_packed_layers_is_refused(tiny_model):
    """Plain weights are never called GPTQ."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(NotHonouredError, match="no layer of the model is packed"):
        _read(AutoModelForCausalLM.from_pretrained(tiny_model))
