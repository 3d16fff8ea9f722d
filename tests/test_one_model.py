"""One model in this process: loaded for a notebook, or written as a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

import checkpoint_makers
import llmquant as lq
from edits import edit_json
from llmquant.errors import NotHonouredError, RequestError

pytestmark = pytest.mark.usefixtures("own_cache")


def _logits(module):
    import torch

    with torch.inference_mode():
        return module(torch.arange(20)[None]).logits


@pytest.mark.parametrize("preset", ["fp16_baseline", "bnb_4bit_nf4", "bnb_8bit"])
def test_a_written_checkpoint_loads_with_plain_transformers(preset, tiny_model, tmp_path):
    """And computes what the model it was made from computes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    applied = lq.quantize(tiny_model, preset, tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map={"": "cpu"})
    loaded = lq.load(tiny_model, preset, device="cpu")
    # Loaded on a CPU with AVX512-BF16, 4-bit layers are repacked: the same weights, stored otherwise.
    assert replace(loaded.applied, dtypes={}) == replace(applied, dtypes={})
    assert torch.equal(_logits(again), _logits(loaded.module))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_written_checkpoint_has_a_model_card(tiny_model, tmp_path):
    """It names the model, the method and how to measure the loss."""
    lq.quantize(tiny_model, "bnb_4bit_nf4", tmp_path / "out", device="cpu")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for said in (tiny_model.name, "sha256:", "bitsandbytes, nf4, 4 bits", "llmquant compare"):
        assert said in card


def test_a_checkpoint_overwrites_nothing(tiny_model, tmp_path):
    """A folder with anything in it is refused before anything is looked up."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        lq.quantize(tiny_model, "no_such_preset", tmp_path / "out")


def test_a_checkpoint_that_fails_leaves_nothing(tiny_model, tmp_path):
    """Not even a partial folder beside it."""
    lq.register(checkpoint_makers.SPEC)
    with pytest.raises(NotHonouredError):
        lq.quantize(tiny_model, "copy(lies=true)", tmp_path / "new" / "out", device="cpu")
    assert not list(tmp_path.glob("new/*"))


def test_a_model_shorter_than_any_prompt_loads(tiny_model, tmp_path):
    """Loading asks nothing that only a measurement would need."""
    import shutil

    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    edit_json(short / "config.json", max_position_embeddings=64)
    assert lq.load(short, "fp32_baseline", device="cpu").module.config.max_position_embeddings == 64


def test_loading_leaves_no_folder_behind(tiny_model, tmp_path, monkeypatch):
    """What it needed on the way is gone."""
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    lq.load(tiny_model, "fp32_baseline", device="cpu")
    assert not list((tmp_path / "tmp").glob("llmquant-*"))
