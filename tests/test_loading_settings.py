"""Nothing beside the weights decides an answer: generation, tokenizer and special tokens are equal for all variants."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edits import edit_json
from llmquant.errors import ModelError, UnsupportedError
from llmquant.models.info import inspect_model
from llmquant.quantizers.baseline.options import BaselineOptions
from llmquant.study.experiment import ModelRequest


@pytest.fixture
def copy(tiny_model, tmp_path):
    """Return a function that copies the tiny model, with other settings in one of its files."""

    def run(name, file="config.json", **changes):
        folder = Path(shutil.copytree(tiny_model, tmp_path / name))
        edit_json(folder / file, **changes)
        return folder

    return run


@pytest.fixture
def load(tiny_model, context):
    """Return a function that loads a folder as a variant of a model, which is the folder itself unless it is named."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.quantizers.baseline.quantizer import Baseline

    def run(folder, model=None):
        options, ctx = BaselineOptions("float32"), context()
        info = inspect_model(ModelRequest(str(model or folder)), ctx.cache)
        return load_causal_lm(folder, info, Baseline(options), options, ctx)

    return run


def answer(loaded):
    """Generate as lm-eval does."""
    ids = loaded.tokenizer("Question: How many sacks were sold?", return_tensors="pt").input_ids
    found = loaded.module.generate(input_ids=ids, do_sample=False, max_length=ids.shape[1] + 24, use_cache=True)
    return found[0, ids.shape[1] :].tolist()


STEERING = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "suppress_tokens": {"suppress_tokens": list(range(100, 300))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(100, 563))},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "num_beams": {"num_beams": 4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(300, 500)]},
    "watermark": {"watermarking_config": {"bias": 9.0}},
    "returns": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("said", STEERING.values(), ids=STEERING)
def test_generation_settings_of_a_checkpoint_change_no_answer(copy, load, tiny_model, said):
    """Whatever generation_config.json asks for, an answer is the likeliest token each time."""
    assert answer(load(copy("steered", "generation_config.json", **said))) == answer(load(tiny_model))


def test_generation_settings_inside_the_configuration_change_no_answer(copy, load, tiny_model):
    """Older checkpoints keep them in config.json."""
    folder = copy("legacy", repetition_penalty=1.5, num_beams=3)
    (folder / "generation_config.json").unlink()
    assert answer(load(folder)) == answer(load(tiny_model))


def test_what_a_forward_pass_returns_is_not_the_checkpoints_choice(copy, load):
    """Flags of a training script neither break an evaluation nor make it collect attentions."""
    import torch

    module = load(copy("flags", return_dict=False, output_attentions=True, output_hidden_states=True)).module
    assert set(module(torch.arange(3, 9)[None]).keys()) == {"logits", "past_key_values"}


def test_the_sanity_check_is_not_steered(copy, load, tiny_model):
    """It says what the likeliest tokens say."""
    from llmquant.loading.causal_lm import sanity_check

    steered = load(copy("steered", "generation_config.json", repetition_penalty=5.0, num_beams=4))
    assert sanity_check(steered) == sanity_check(load(tiny_model))


def test_the_model_decides_where_texts_end(copy, load, tiny_model):
    """A variant's own list of final tokens is not used; the model's is, whole."""
    model = copy("model", "generation_config.json", eos_token_id=[2, 187])
    variant = copy("variant", "generation_config.json", eos_token_id=291)
    assert load(variant, model).module.generation_config.eos_token_id == [2, 187]
    assert load(model).module.generation_config.eos_token_id == [2, 187]
    (variant / "generation_config.json").unlink()
    assert load(variant).module.generation_config.eos_token_id == 2  # config.json's


def test_damaged_generation_settings_are_refused(copy, load):
    """Rather than taken for none: they say where texts end."""
    folder = copy("model")
    (folder / "generation_config.json").write_bytes(b'\xef\xbb\xbf{"eos_token_id": 5}')
    with pytest.raises(ModelError, match=r"generation_config.json cannot be read"):
        load(folder)


def end_texts(folder, *begin):
    """Let the tokenizer end every text with a token, as training scripts save it."""
    state = json.loads((folder / "tokenizer.json").read_text())
    parts = [*begin, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}]
    ids = {"<|im_start|>": 1, "<|im_end|>": 2}
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()}
    template = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": tokens}
    processors = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, template]
    state["post_processor"] = {"type": "Sequence", "processors": processors}
    (folder / "tokenizer.json").write_text(json.dumps(state))


def test_a_tokenizer_that_ends_every_text_leaves_prompts_open(copy, load, tiny_model):
    """Else a model continues after its end, and the likelihood of an answer is that of the end."""
    folder = copy("ended")
    end_texts(folder)
    loaded = load(folder)
    assert loaded.applied.note == "its tokenizer ends every text with '<|im_end|>', which is left out"
    assert answer(loaded) == answer(load(tiny_model))


def test_what_a_tokenizer_puts_in_front_stays(copy, load):
    """Only the end goes."""
    folder = copy("both")
    end_texts(folder, {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}})
    tokenizer = load(folder).tokenizer
    assert tokenizer("a").input_ids == [1, *tokenizer("a", add_special_tokens=False).input_ids]


def change_template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def name_template(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "rag.jinja")


def compose(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(state | {"normalizer": {"type": "NFC"}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_template("{{ messages[0]['content'] + 1 }}"), "it has another chat template"),
        (name_template, "it has another chat template"),
        (compose, "its tokenizer divides text into other tokens"),
    ],
    ids=["a template that fails", "no template by default", "composed characters"],
)
def test_what_another_tokenizer_does_is_said(copy, load, tiny_model, change, said):
    """Whatever its template raises when it is asked."""
    folder = copy("variant")
    change(folder)
    assert said in load(folder, tiny_model).applied.note


def test_quantizing_keeps_the_generation_settings_of_the_model(copy, tmp_path, monkeypatch):
    """A checkpoint that is written for others generates as the model's authors meant."""
    import llmquant as lq

    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    folder = copy("model", "generation_config.json", repetition_penalty=1.5)
    lq.quantize(str(folder), "fp32_baseline", tmp_path / "out", device="cpu")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["repetition_penalty"] == 1.5


def _edit_tokenizer(folder, change):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _add_bos(tokenizer):
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }


def test_a_checkpoint_is_read_with_the_models_tokenizer(copy, load, tiny_model):
    """A baseline with a BOS beside a variant without it would not see the same prompts."""
    model = _edit_tokenizer(copy("model"), _add_bos)
    variant = load(copy("variant"), model)
    assert (
        variant.tokenizer("a").input_ids
        == load(model).tokenizer("a").input_ids
        == [1, *load(tiny_model).tokenizer("a").input_ids]
    )
    assert variant.applied.note == "its tokenizer adds other special tokens to a text; the model's tokenizer is used"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "its tokenizer divides text into other tokens"),
        (lambda t: t["model"].update(merges=t["model"]["merges"][:50]), "its tokenizer divides text into other tokens"),
    ],
    ids=["normalizer", "merges"],
)
def test_a_tokenizer_that_divides_otherwise_is_said(copy, load, tiny_model, change, said):
    """The ids mean the same words, so the model's tokenizer serves both."""
    loaded = load(_edit_tokenizer(copy("variant"), change), tiny_model)
    assert loaded.applied.note == f"{said}; the model's tokenizer is used"


def test_another_chat_template_and_end_of_text_are_said(copy, load, tiny_model):
    """And the model's are used."""
    folder = copy("variant", "tokenizer_config.json", eos_token="<|endoftext|>")
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    loaded = load(folder, tiny_model)
    assert loaded.applied.note == (
        "its tokenizer's eos_token is '<|endoftext|>', not '<|im_end|>'; it has another chat template; "
        "the model's tokenizer is used"
    )
    assert loaded.tokenizer.chat_template == load(tiny_model).tokenizer.chat_template


def test_a_checkpoint_without_a_tokenizer_is_read_with_the_models(copy, load, tiny_model):
    """Many that others publish have none."""
    folder = copy("variant")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    assert "the model's is used" in load(folder, tiny_model).applied.note


def test_an_equal_checkpoint_has_nothing_to_say(copy, load, tiny_model):
    """A copy is no difference."""
    assert load(copy("variant"), tiny_model).applied.note == ""


def test_a_checkpoint_whose_ids_mean_other_words_is_refused(copy, load, tiny_model):
    """Its embeddings belong to another vocabulary."""

    def swap(tokenizer):
        words = tokenizer["model"]["vocab"]
        one, other = list(words)[300:302]
        words[one], words[other] = words[other], words[one]

    with pytest.raises(UnsupportedError, match=r"2 token ids of .* mean other words"):
        load(_edit_tokenizer(copy("variant"), swap), tiny_model)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
        {"max_position_embeddings": 512},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_checkpoint_that_computes_another_function_is_refused(copy, load, tiny_model, changes):
    """With equal weights too: the setting is named, with both values."""
    with pytest.raises(UnsupportedError, match=rf"its {next(iter(changes))} is .*, not "):
        load(copy("variant", **changes), tiny_model)


def test_other_settings_of_a_checkpoint_are_said(copy, load, tiny_model):
    """A reader of the table can judge them."""
    assert load(copy("variant", eos_token_id=7), tiny_model).applied.note == "its eos_token_id is 7, not 2"


def test_saved_truncation_and_padding_change_no_prompt(copy, load, tiny_model):
    """A tokenizer.json that was saved while training cuts every text to the training's length."""

    def save_state(tokenizer):
        tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
        tokenizer["padding"] = {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }

    text = "A lighthouse keeper counted the ships that passed before dawn. " * 4
    loaded = load(_edit_tokenizer(copy("variant"), save_state))
    assert loaded.tokenizer(text).input_ids == load(tiny_model).tokenizer(text).input_ids
