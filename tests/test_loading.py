"""The loaded model is complete, as requested, and generates text; otherwise there is a clear error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from edits import edit_json, edit_tensors
from llmquant.errors import ModelError, NotHonouredError, PluginError, SanityError
from llmquant.models.info import inspect_model
from llmquant.quantizers.baseline.options import BaselineOptions
from llmquant.study.experiment import ModelRequest
from quantizing import logits


@pytest.fixture
def load(context):
    """Return a function that inspects and loads a folder."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.quantizers.baseline.quantizer import Baseline

    def run(path, options=None, *, quantizer=None, **flags):
        ctx = context()
        options = options or BaselineOptions("float32")
        info = inspect_model(ModelRequest(str(path), **flags), ctx.cache)
        return load_causal_lm(path, info, quantizer or Baseline(options), options, ctx)

    return run


def test_a_missing_tensor_is_an_error_not_random_numbers(folder, load):
    """Transformers would fill it in at random and only warn."""
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_a_tied_head_is_not_missing(tiny_model, load):
    """The tiny model's file has no head of its own; it is the embedding."""
    module = load(tiny_model).module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_a_tensor_of_another_shape_is_an_error(folder, load):
    """A configuration that belongs to another model is found, and the shapes are named."""
    edit_json(folder / "config.json", intermediate_size=96)
    with pytest.raises(ModelError, match=r"\(64, 128\), not \(64, 96\)"):
        load(folder)


def test_an_unknown_architecture_is_said(folder, load):
    """The message names the model and the version of transformers."""
    edit_json(folder / "config.json", model_type="strange", architectures=["Strange"])
    with pytest.raises(ModelError, match=r"transformers .* cannot load"):
        load(folder)


def test_a_checkpoint_without_tokenizer_is_said(folder, load):
    """Weights alone cannot be evaluated."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(folder)


def test_pickled_weights_load_when_allowed(folder, load, tiny_model):
    """The same function as from safetensors."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(logits(load(folder, allow_pickle=True).module), logits(load(tiny_model).module))


def test_a_model_is_loaded_for_inference_with_padding(tiny_model, load):
    """Evaluation mode, a padding token, and the cost of loading."""
    model = load(tiny_model)
    assert not model.module.training
    assert model.tokenizer.pad_token is not None
    assert model.load.seconds > 0


class _Lying:
    """A quantizer that does not do what its options say."""

    def __init__(self, **claims):
        self._claims = claims

    def prepare(self, model, out, ctx):
        return model

    def load_kwargs(self, model, ctx):
        import torch

        return {"dtype": torch.float32}

    def applied(self, module):
        from llmquant.quantizers.baseline.quantizer import Baseline

        return dataclasses.replace(Baseline(BaselineOptions()).applied(module), **self._claims)


def test_what_is_not_honoured_is_an_error(tiny_model, load):
    """Asked for bfloat16, found float32: both are named."""
    with pytest.raises(NotHonouredError, match="code bfloat16, found float32"):
        load(tiny_model, BaselineOptions("bfloat16"), quantizer=_Lying())


def test_a_quantization_that_reaches_no_layer_is_an_error(tiny_model, load):
    """A method that quantized nothing has not been applied."""
    with pytest.raises(NotHonouredError, match="none of 15 linear layers"):
        load(tiny_model, object(), quantizer=_Lying(method="magic", layers_quantized=0))


@dataclass(frozen=True)
class _Misspelt:
    def requests(self):
        return {"colour": "nf4"}


def test_a_request_that_cannot_be_read_back_is_the_plugins_fault(tiny_model, load):
    """A misspelt field is an error of the plugin, not of the model."""
    with pytest.raises(PluginError, match="colour"):
        load(tiny_model, _Misspelt(), quantizer=_Lying())


def test_a_model_lies_on_all_gpus_of_its_process(monkeypatch):
    """Several are seen only where a job was given several; a device with a number is meant as it is."""
    from llmquant.loading.causal_lm import device_map

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_map("cuda") == "balanced"
    assert [device_map(device) for device in ("cpu", "cuda:1")] == [{"": "cpu"}, {"": "cuda:1"}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert device_map("cuda") == {"": "cuda"}


def test_gguf_becomes_a_checkpoint_of_the_same_function(tiny_gguf, tiny_model, context):
    """Weights differ by no more than Q8_0 rounds, the rest is equal; a second time nothing is converted."""
    import torch
    from safetensors.torch import load_file

    from llmquant.loading.causal_lm import materialize

    cache = context().cache
    info = inspect_model(ModelRequest(str(tiny_gguf)), cache)
    path = materialize(info, cache)
    found, expected = load_file(path / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=tensor.abs().max().item() / 127 if "proj" in name else 0.0)
    written = (path / "model.safetensors").stat().st_mtime_ns
    assert materialize(info, cache) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == written


def test_gguf_keeps_its_tokenizer_and_chat_template(tiny_gguf, tiny_model, context):
    """Text becomes the same tokens, and so does a conversation."""
    from transformers import AutoTokenizer

    from llmquant.loading.causal_lm import materialize

    cache = context().cache
    path = materialize(inspect_model(ModelRequest(str(tiny_gguf)), cache), cache)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (path, tiny_model))
    text, talk = "The lighthouse keeper said: why?", [{"role": "user", "content": "Hello"}]
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.apply_chat_template(talk, tokenize=False) == theirs.apply_chat_template(talk, tokenize=False)


def test_a_sane_model_says_something(tiny_model, load):
    """The text comes back, for the log."""
    from llmquant.loading.causal_lm import sanity_check

    assert sanity_check(load(tiny_model)).strip()


def test_a_model_whose_logits_are_not_finite_fails(tiny_model, load):
    """One infinite weight is enough, and the message says what is wrong."""
    from llmquant.loading.causal_lm import sanity_check

    model = load(tiny_model)
    model.module.model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(SanityError, match="not finite"):
        sanity_check(model)


def test_a_model_that_repeats_one_token_fails(tiny_model, load):
    """The message has the text that came out."""
    from llmquant.loading.causal_lm import sanity_check

    model = load(tiny_model)
    model.module.model.norm.weight.data.zero_()
    with pytest.raises(SanityError):
        sanity_check(model)
