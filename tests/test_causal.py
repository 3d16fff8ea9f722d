"""What is scored as a causal language model is one, and its files agree with each other."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edits import edit_json, edit_tensors
from llmquant.errors import ModelError, SanityError, UnsupportedError
from llmquant.models import info as models
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_WIDE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
_WIDE |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}


@pytest.fixture
def inspect(tmp_path):
    """Return a function that inspects a folder as a study does, before anything is loaded."""
    return lambda folder: inspect_subject(ModelRequest(str(folder)), registry(), Cache(tmp_path / "cache"))


def _refusal(inspect, folder, kind=ModelError):
    with pytest.raises(kind) as caught:
        inspect(folder)
    return caught.value


_NOT_CAUSAL = {
    "BERT": (transformers.BertForMaskedLM, transformers.BertConfig, _SMALL),
    "RoBERTa": (transformers.RobertaForMaskedLM, transformers.RobertaConfig, _SMALL),
    "RoBERTa as causal": (transformers.RobertaForCausalLM, transformers.RobertaConfig, _SMALL),
    "ELECTRA": (transformers.ElectraForCausalLM, transformers.ElectraConfig, {**_SMALL, "is_decoder": False}),
    "T5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        {"d_model": 32, "d_ff": 64, "num_layers": 1},
    ),
    "BERT as decoder": (transformers.BertForMaskedLM, transformers.BertConfig, {**_SMALL, "is_decoder": True}),
    "BART": (transformers.BartForConditionalGeneration, transformers.BartConfig, _WIDE),
    "DistilBERT": (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig, {"dim": 24, "n_layers": 1}),
}


@pytest.mark.parametrize(("model", "config", "sizes"), _NOT_CAUSAL.values(), ids=_NOT_CAUSAL)
def test_masked_and_encoder_decoder_models_are_refused_before_loading(inspect, tmp_path, model, config, sizes):
    """Transformers would load most of them as causal models, and a perplexity would come out."""
    model(config(vocab_size=64, pad_token_id=0, **sizes)).save_pretrained(tmp_path / "odd")
    assert "would mean nothing" in _refusal(inspect, tmp_path / "odd", UnsupportedError).message


def test_a_model_that_attends_in_both_directions_is_refused(inspect, folder):
    """As some embedding models made of decoders say of themselves."""
    edit_json(folder / "config.json", is_causal=False)
    assert "both directions" in _refusal(inspect, folder, UnsupportedError).message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn], ids=str)
def test_codes_without_a_quantization_config_are_refused(inspect, folder, dtype):
    """Loaded as they are, a model saved in 8 bits counts as bfloat16, and has a perplexity in the millions."""
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refusal = _refusal(inspect, folder)
    assert name in refusal.message
    assert "no quantization_config" in refusal.message


@pytest.mark.parametrize("said", [1, 4])
def test_another_number_of_layers_than_the_files_is_refused(inspect, folder, said):
    """With fewer, the rest would be ignored; with more, it would be random."""
    edit_json(folder / "config.json", num_hidden_layers=said)
    assert f"holds 2 layers (model.layers), and its configuration says {said}" in _refusal(inspect, folder).message


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_a_token_id_of_the_configuration_has_a_row(inspect, folder, name):
    """The message names the id and the rows."""
    edit_json(folder / "config.json", **{name: 32_000})
    assert f"the {name} of {folder} is 32000" in _refusal(inspect, folder).message


def test_a_word_of_the_tokenizer_has_a_row(inspect, folder):
    """Before loading, from ``tokenizer.json``: on CUDA a text with such a word ends the process."""
    name = "model.embed_tokens.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:-3].clone()}))
    assert "has 3 tokens without a row in its embedding" in _refusal(inspect, folder).message


def test_a_tied_head_with_other_bytes_is_refused(inspect, folder):
    """The prediction of its size was off by a head, and engines differ in what they do."""
    name = "model.embed_tokens.weight"
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[name] + 1}))
    assert "ties 'lm_head.weight'" in _refusal(inspect, folder).message


def test_a_tied_head_with_equal_bytes_is_no_fault(inspect, folder):
    """Pickles and older versions store both."""
    name = "model.embed_tokens.weight"
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[name].clone()}))
    inspect(folder)


_FAMILIES = {
    "GPT-2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {"n_embd": 32, "n_layer": 1, "n_head": 2}),
    "Gemma": (transformers.GemmaForCausalLM, transformers.GemmaConfig, {**_SMALL, "head_dim": 16}),
    "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, _SMALL),
}


@pytest.fixture(params=_FAMILIES.values(), ids=_FAMILIES)
def silent(request, tmp_path):
    """Save a model with a head that equals its embedding, and a configuration that does not say whether it is tied."""
    model, config, sizes = request.param
    folder = tmp_path / "silent"
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model(config(vocab_size=64, **tokens, **sizes)).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    said.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(said))

    def store_head(tensors):
        tensors["lm_head.weight"] = next(t.clone() for t in tensors.values() if t.shape == (64, 32))

    edit_tensors(folder, store_head)
    return folder


def test_a_head_is_tied_as_its_family_does_where_the_configuration_is_silent(inspect, silent):
    """The parameters that are predicted are those that are held: GPT-2 and Gemma tie, Llama does not."""
    held = transformers.AutoModelForCausalLM.from_pretrained(silent).num_parameters()
    assert inspect(silent).parameters == held


@pytest.mark.parametrize("silent", [_FAMILIES["GPT-2"], _FAMILIES["Gemma"]], indirect=True)
def test_a_head_of_its_own_is_refused_where_its_family_ties(inspect, silent):
    """As where the configuration says that it is tied."""
    edit_tensors(silent, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    assert "ties 'lm_head.weight'" in _refusal(inspect, silent).message


def test_families_that_tie_by_default_are_those_of_transformers():
    """Their list is compared with the configurations themselves, which nothing imports before a model is loaded."""
    families = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    tie = {f for f in families if getattr(transformers.CONFIG_MAPPING[f], "tie_word_embeddings", False)}
    assert tie == set(models._TIED.split()) & set(families)  # the list has families of later versions too


def test_an_untied_head_that_is_not_there_is_refused(inspect, folder):
    """Transformers would make one up."""
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert "has no lm_head.weight" in _refusal(inspect, folder).message


def test_a_weight_under_two_names_is_refused(inspect, folder):
    """Transformers loads one over the other."""
    edit_tensors(folder, lambda t: t.update({"norm.weight": torch.zeros(64)}))
    assert "holds both 'model.norm.weight' and 'norm.weight'" in _refusal(inspect, folder).message


def test_names_without_the_models_prefix_are_no_fault(inspect, folder):
    """As a decoder without its head is saved."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    inspect(folder)


def test_an_adapter_beside_a_model_is_refused(inspect, folder):
    """Transformers would load the adapter's base model in its place, or the adapter on top of it."""
    (folder / "adapter_config.json").write_text("{}")
    assert "holds a model and an adapter" in _refusal(inspect, folder).message


def test_a_configuration_of_wrong_types_is_refused(load, folder):
    """With what transformers says of it."""
    edit_json(folder / "config.json", hidden_size="64")
    with pytest.raises(ModelError, match=r"cannot load .* for field 'hidden_size'"):
        load(folder)


@pytest.fixture
def sharded(tiny_model, tmp_path):
    """Save the tiny model in several files with an index."""
    folder = tmp_path / "sharded"
    transformers.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="150KB")
    return folder


def test_files_hold_what_the_index_says(inspect, sharded):
    """A file of another checkpoint under the right name is found."""
    inspect(sharded)
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    shutil.copyfile(last, first)
    assert "both hold" in _refusal(inspect, sharded).message
    save_file({"other": torch.zeros(1)}, first)
    assert f"says that {first.name} holds" in _refusal(inspect, sharded).message


def test_two_sets_of_weights_are_refused(inspect, sharded, tiny_model):
    """One file beside shards is another checkpoint; an index without its shards says nothing."""
    shutil.copy(tiny_model / "model.safetensors", sharded)
    assert "holds two sets of weights" in _refusal(inspect, sharded).message
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    inspect(sharded)


@pytest.fixture
def load(context):
    """Return a function that loads a folder as the baseline."""
    from llmquant.quantizers.baseline.options import BaselineOptions
    from llmquant.quantizers.baseline.quantizer import Baseline
    from quantizing import load_as

    return lambda folder, dtype="float32": load_as(Baseline, BaselineOptions(dtype), folder, context())


def test_padding_without_a_row_is_replaced_and_said(load, folder):
    """Padding is masked: the token that ends a text does as well, and the numbers stay."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    model = load(folder)
    assert model.tokenizer.pad_token == model.tokenizer.eos_token
    assert f"'[PAD]' ({rows}) has no row in its embedding of {rows}" in model.applied.note
    with pytest.raises(ModelError, match=f"became the token id {rows}"):
        model.module(model.tokenizer("a [PAD]", return_tensors="pt")["input_ids"])


def test_a_causal_model_passes_the_probe(load, tiny_model):
    """In float32 and in bfloat16 nothing moves."""
    from llmquant.loading.causal_lm import check_causality

    for dtype in ("float32", "bfloat16"):
        check_causality(load(tiny_model, dtype))


def test_a_model_that_sees_later_tokens_fails_the_probe(load, tiny_model):
    """Whatever its configuration says of itself."""
    from llmquant.loading.causal_lm import check_causality

    for dtype in ("float32", "bfloat16"):
        model = load(tiny_model, dtype)
        model.module.model.forward = _without_mask(model.module.model)
        with pytest.raises(SanityError, match="not a causal language model"):
            check_causality(model)


def _without_mask(decoder):
    """Let every token see every other one."""
    forward = decoder.forward

    def run(input_ids, **keywords):
        size = input_ids.shape[1]
        keywords["attention_mask"] = torch.zeros(1, 1, size, size, dtype=decoder.dtype)
        return forward(input_ids=input_ids, **keywords)

    return run
