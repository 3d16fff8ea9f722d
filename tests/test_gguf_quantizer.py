"""GGUF variants hold what a .gguf file would, in the places where llama.cpp would put it."""

from __future__ import annotations

import dataclasses
import shutil
from typing import get_args

import pytest

pytest.importorskip("libggml")

import gguf
import numpy as np
import torch

from llmquant.errors import NotHonouredError, UnsupportedError
from llmquant.loading.memory import weight_bytes
from llmquant.models.info import inspect_model
from llmquant.quantizers.gguf.options import BLOCK_TYPES, FileType, GgufOptions, block_types
from llmquant.quantizers.gguf.quantizer import Gguf, _round_trip
from llmquant.study.experiment import ModelRequest
from quantizing import quantize_once

FILE_TYPES = get_args(FileType)


@pytest.fixture(scope="module")
def wide_model(tiny_model, tmp_path_factory):
    """Build a Llama whose rows have 256 weights, as k-quants need, and whose head is its own."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Keep what was quantized, by model and options; the first test that asks for it makes it."""
    made = {}
    return lambda folder, options: made.setdefault((folder, options), tmp_path_factory.mktemp(options.file_type))


@pytest.fixture
def load(context, checkpoints):
    """Return a function that quantizes a checkpoint, once, and loads the result."""
    return lambda folder, options: quantize_once(Gguf(options), folder, checkpoints(folder, options), context())


def test_files_that_are_not_loaded_are_not_quantized(load, wide_model, tmp_path):
    """A Mistral folder also holds ``consolidated.safetensors``: the same weights under other names."""
    from safetensors.torch import save_file

    folder = shutil.copytree(wide_model, tmp_path / "two")
    save_file({"layers.0.attention.wq.weight": torch.ones(256, 256)}, folder / "consolidated.safetensors")
    model = load(folder, GgufOptions("q8_0"))
    assert torch.equal(model.module.lm_head.weight, load(wide_model, GgufOptions("q8_0")).module.lm_head.weight)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_file_type_is_read_back_from_the_weights(load, wide_model, file_type):
    """Code and size are as promised, for each file type of llama.cpp that is offered."""
    model = load(wide_model, GgufOptions(file_type))
    assert model.applied.code == file_type
    assert "dequantized" in model.applied.note
    assert model.applied.served_bytes == GgufOptions(file_type).served_bytes(model.info)
    assert weight_bytes(model.module).total == pytest.approx(
        GgufOptions(file_type).weight_bytes(model.info, "cpu"), rel=0.01
    )


@pytest.mark.parametrize("file_type", ["q4_k_m", "q8_0"])
def test_widths_that_k_quants_cannot_divide_get_the_types_llama_cpp_takes(load, tiny_model, file_type):
    """64 weights a row: Q4_K becomes Q5_0, Q6_K becomes Q8_0, and the note says how many."""
    note = load(tiny_model, GgufOptions(file_type)).applied.note
    assert ("Q5_0 12, Q8_0 3" if file_type == "q4_k_m" else "Q8_0 15") in note


def test_more_bits_lose_less(load, wide_model):
    """The logits come closer to those of the original with each step up."""
    from transformers import AutoModelForCausalLM

    tokens, ordered = torch.arange(3, 40)[None], ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]
    with torch.no_grad():
        original = AutoModelForCausalLM.from_pretrained(wide_model, dtype=torch.bfloat16)(tokens).logits.float()
        found = [load(wide_model, GgufOptions(t)).module(tokens).logits.float() for t in ordered]
    losses = [float((logits - original).square().mean()) for logits in found]
    assert sorted(losses, reverse=True) == losses


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_weights_that_were_not_quantized_are_noticed(load, wide_model, file_type):
    """An ordinary checkpoint under a file type's name is refused."""
    options = GgufOptions(file_type)
    module = load(wide_model, options).module
    torch.manual_seed(1)
    weight = module.model.layers[1].mlp.up_proj.weight
    weight.data = (torch.randn(weight.shape) * 0.1).to(weight.dtype)
    with pytest.raises(NotHonouredError, match="up_proj"):
        Gguf(options).applied(module)


@pytest.mark.parametrize("block_type", ["Q4_0", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_are_those_of_the_gguf_package(block_type):
    """Where llama.cpp has a second implementation, in Python, both give the same bits."""
    rows = _normal(8, 1024)
    kind = gguf.GGMLQuantizationType[block_type]
    assert np.array_equal(_round_trip(rows, block_type), gguf.dequantize(gguf.quantize(rows, kind), kind))


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_the_table_of_block_types_is_true(block_type):
    """Sizes are those of the gguf package, and the error is that of normally distributed weights."""
    row = BLOCK_TYPES[block_type]
    assert (row.weights, row.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[block_type]]
    rows = _normal(512, 1024)
    lost = np.sqrt(np.square(rows - _round_trip(rows, block_type)).mean() / np.square(rows).mean())
    assert lost == pytest.approx(row.error, rel=0.02)


def test_threads_do_not_change_the_blocks():
    """A matrix quantized in pieces is the one quantized whole."""
    rows = _normal(1200, 512)
    assert np.array_equal(_round_trip(rows, "Q4_K")[-7:], _round_trip(rows[-7:], "Q4_K"))


def _normal(height, width):
    return np.random.default_rng(0).normal(scale=0.05, size=(height, width)).astype(np.float32)


def _llama(layers, heads=32, groups=8, *, tied=False):
    """Return shapes and configuration of a Llama with rows of 4096 weights."""
    names = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    shapes = {f"model.layers.{i}.{name}.weight": (4096, 4096) for i in range(layers) for name in names}
    shapes |= {"model.embed_tokens.weight": (32000, 4096), "model.norm.weight": (4096,)}
    shapes |= {} if tied else {"lm_head.weight": (32000, 4096)}
    return shapes, {"num_attention_heads": heads, "num_key_value_heads": groups}


def test_q4_k_m_gives_more_bits_where_llama_cpp_does():
    """Of 32 layers: the first four, the last four, and every third between; the head as well."""
    types = block_types(*_llama(32), "q4_k_m")
    more = [i for i in range(32) if types[f"model.layers.{i}.mlp.down_proj.weight"] == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [i for i in range(32) if types[f"model.layers.{i}.self_attn.v_proj.weight"] == "Q6_K"] == more
    assert types["lm_head.weight"] == "Q6_K"
    assert types["model.embed_tokens.weight"] == types["model.layers.0.self_attn.q_proj.weight"] == "Q4_K"


def test_tied_embeddings_are_quantized_as_a_head():
    """They are one tensor in the file too."""
    assert block_types(*_llama(2, tied=True), "q4_k_m")["model.embed_tokens.weight"] == "Q6_K"


def test_grouped_heads_and_large_models_get_more_bits_for_values():
    """Q2_K looks at the heads a group, and 80 layers mean a 70B model."""
    name = "model.layers.20.self_attn.v_proj.weight"
    assert [block_types(*_llama(40, 32, groups), "q2_k")[name] for groups in (8, 32)] == ["Q4_K", "Q3_K"]
    assert [block_types(*_llama(layers), "q4_k_m")[name] for layers in (40, 80)] == ["Q4_K", "Q5_K"]


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.experts.1.down_proj.weight", "transformer.h.0.attn.c_attn.weight"]
)
def test_a_weight_without_a_known_place_is_refused(name):
    """Mixtures and models with other names would get types that llama.cpp would not give them."""
    with pytest.raises(UnsupportedError, match="is unknown"):
        block_types({name: (256, 256)}, {}, "q4_k_m")


def test_rows_that_no_block_fits_are_refused():
    """The last resort is 32 weights a block."""
    with pytest.raises(UnsupportedError, match="multiple of 32"):
        block_types({"model.layers.0.mlp.up_proj.weight": (64, 80)}, {}, "q4_k_m")


def test_models_that_are_quantized_already_are_refused(tiny_model, tiny_gguf, context):
    """Another checkpoint's quantization, or GGUF itself."""
    cache = context().cache
    info = inspect_model(ModelRequest(str(tiny_model)), cache)
    quantized = dataclasses.replace(info, config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    for model in (quantized, inspect_model(ModelRequest(str(tiny_gguf)), cache)):
        with pytest.raises(UnsupportedError, match="already"):
            GgufOptions().check(model, "cpu")
