"""A checkpoint is loaded whole, with all that it holds, or refused with the name of what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmquant.errors import ModelError
from llmquant.loading.strict import check_source, load_causal


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def _edit_tensors(folder, **changes):
    """Change tensors by the name's last parts, written with ``__``; `None` takes one out."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        full = name.replace("__", ".")
        if value is None:
            tensors.pop(full)
        else:
            tensors[full] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _load(folder):
    return load_causal(folder, "it", {})


_ODD = {
    "a missing weight": ({"model__layers__1__mlp__up_proj__weight": None}, r"lacks 1 of the weights.*1\.mlp\.up_proj"),
    "an unknown bias": ({"model__layers__1__mlp__up_proj__bias": torch.zeros(128)}, r"holds 1 weight .*up_proj\.bias"),
    "scales": ({"model__layers__0__mlp__up_proj__SCB": torch.ones(128)}, r"holds 1 weight .*SCB"),
    "a layer": ({"model__layers__2__input_layernorm__weight": torch.ones(64)}, r"holds 1 weight .*layers\.2"),
    "a scale of keys": ({"model__layers__0__self_attn__k_scale": torch.ones(1)}, r"holds 1 weight .*k_scale"),
}


@pytest.mark.parametrize("check", [_load, lambda folder: check_source(folder, "it")], ids=["loaded", "checked"])
@pytest.mark.parametrize(("changes", "message"), _ODD.values(), ids=_ODD)
def test_what_is_missing_or_left_over_is_refused(folder, check, changes, message):
    """With numbers and without, and the first tensor is named."""
    _edit_tensors(folder, **changes)
    with pytest.raises(ModelError, match=message):
        check(folder)


_ORDINARY = {
    "rotary frequencies": {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(8)},
    "layers for further tokens": {"mtp__layers__0__mlp__up_proj__weight": torch.ones(8, 8)},
    "a mask": {"model__layers__0__attn__masked_bias": torch.tensor(-1e4)},
}


@pytest.mark.parametrize("changes", _ORDINARY.values(), ids=_ORDINARY)
def test_what_ordinary_checkpoints_hold_besides_is_no_fault(folder, changes):
    """Constants that models compute now, and layers that other engines use."""
    _edit_tensors(folder, **changes)
    _load(folder)


def test_a_head_stored_beside_the_embedding_it_is_tied_to_is_no_fault(folder):
    """Equal bytes: the loaded model has one tensor."""
    tensors = load_file(folder / "model.safetensors")
    _edit_tensors(folder, lm_head__weight=tensors["model.embed_tokens.weight"].clone())
    module = _load(folder)
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_a_head_of_its_own_where_the_configuration_ties_it_is_refused(folder):
    """Engines differ in which of the two tensors they use."""
    tensors = load_file(folder / "model.safetensors")
    _edit_tensors(folder, lm_head__weight=tensors["model.embed_tokens.weight"] + 1)
    with pytest.raises(ModelError, match=r"ties 'lm_head.weight' to its embedding") as caught:
        _load(folder)
    assert "tie_word_embeddings" in caught.value.hint


def test_an_untied_head_that_is_not_in_the_file_is_missing(folder):
    """Transformers would make one up at random."""
    _edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*lm_head"):
        _load(folder)


def test_quantizers_that_write_checkpoints_read_whole_ones(folder, context, tmp_path):
    """compressed-tensors used to quantize random numbers in place of the missing ones, and to save them."""
    from llmquant.quantizers.compressed_tensors.options import CompressedTensorsOptions
    from llmquant.quantizers.compressed_tensors.quantizer import CompressedTensors

    _edit_tensors(folder, model__layers__1__mlp__up_proj__weight=None)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"lacks 1 of the weights"):
        CompressedTensors(CompressedTensorsOptions()).prepare(folder, out, context())
    assert not list(out.iterdir())


_TWO_LOADS = """
import sys
from pathlib import Path
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Documents, ModelRequest
from llmquant.loading.causal_lm import load_causal_lm
from llmquant.models.info import inspect_model
from llmquant.plugins.context import Context
from llmquant.quantizers.baseline.quantizer import Baseline
from llmquant.quantizers.baseline.options import BaselineOptions

folder, files = map(Path, sys.argv[1:])
context = Context("cpu", 0, Documents(), Cache(files), {}, None, files, lambda done, total: None)
info, options = inspect_model(ModelRequest(str(folder)), context.cache), BaselineOptions()
for _ in range(2):
    print(load_causal_lm(folder, info, Baseline(options), options, context).load.peak_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process took at most")
def test_the_peak_of_a_first_load_holds_no_imports(tiny_model, tmp_path):
    """Transformers imports 190 MiB of modules at the first load; a second one needs none of them."""
    command = [sys.executable, "-c", _TWO_LOADS, str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first - second < 16 * 2**20
