"""A GGUF file as a model computes with the rotary scaling that it says, or is refused."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import llmquant as lq
from llmquant.errors import ModelError
from llmquant.loading.gguf_rope import restore_rope

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep converted files out of the user's cache."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))


def with_scaling(source, path, *, factor=None, divisors=None):
    """Copy a GGUF file with a linear factor, or with divisors of the rotary frequencies."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), *field.types[:2])
    if factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    finish(writer)


def finish(writer):
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def llama3_divisors(theta, width, factor):
    """Divide as llama.cpp's convert_hf_to_gguf.py does: long waves by the factor, short ones by 1."""
    found = []
    for place in range(0, width, 2):
        wave = 2 * math.pi * theta ** (place / width)
        smooth = (8192 / wave - 1) / (4 - 1)
        found.append(factor if wave > 8192 else 1 if wave < 8192 / 4 else 1 / ((1 - smooth) / factor + smooth))
    return found


@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_a_file_computes_what_its_checkpoint_computes(tiny_gguf, tmp_path, kind):
    """Llama 3's files hold divisors instead of settings; other models' say a factor."""
    plain = lq.load(str(tiny_gguf), "bf16_baseline(dtype=float32)", device="cpu").module
    config = copy.deepcopy(plain.config)
    theta, width = config.rope_parameters["rope_theta"], config.head_dim
    divisors = llama3_divisors(theta, width, 32.0) if kind == "llama3" else None
    with_scaling(tiny_gguf, tmp_path / "m.gguf", divisors=divisors, factor=4.0 if divisors is None else None)
    settings = {"factor": 32.0, **LLAMA3} if kind == "llama3" else {"factor": 4.0}
    config.rope_parameters = {"rope_theta": theta, "rope_type": kind, **settings}
    expected = type(plain)(config).eval()
    expected.load_state_dict(plain.state_dict())
    found = lq.load(str(tmp_path / "m.gguf"), "bf16_baseline(dtype=float32)", device="cpu").module
    ids = (torch.arange(600) * 7 % 200)[None]
    with torch.no_grad():
        logits, right, wrong = (module(ids).logits for module in (found, expected, plain))
    assert torch.allclose(logits, right, atol=1e-3)
    assert not torch.allclose(wrong, right, atol=1e-2)


@pytest.mark.parametrize("found", ["yarn", 8, 4])
def test_another_scaling_is_refused(tmp_path, found):
    """YaRN's settings, and divisors that do not follow from Llama 3's settings."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    if found == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    else:
        writer.add_tensor("rope_freqs.weight", torch.linspace(1, 8, found).numpy())
    finish(writer)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16)
    with pytest.raises(ModelError, match="scales its rotary embedding"):
        restore_rope(config, tmp_path / "m.gguf")
    restore_rope(SimpleNamespace(rope_parameters={"rope_type": "yarn"}), tmp_path / "m.gguf")
