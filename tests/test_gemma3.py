"""Gemma 3 as an embedder: loaded whole, batched without loss, quantized like any model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llmquant.embedders.gemma3.embedder import BiGemma3, ColGemma3
from llmquant.embedders.gemma3.options import BiGemma3Options, ColGemma3Options
from llmquant.errors import ItemError, ModelError, OptionError, UnsupportedError
from llmquant.loading.causal_lm import make_ready
from llmquant.loading.memory import weight_bytes
from llmquant.loading.strict import HEAD, check_strict
from llmquant.models.info import Adapter, ModelInfo, inspect_model
from llmquant.quantizers.bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions
from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit, Bnb8bit
from llmquant.study.experiment import ModelRequest
from tiny_gemma3 import write_gemma3

_TEXTS = (
    "barley",
    "What is the colour of the ledger that the keeper wrote the names of the ships into?",
    "Oats, three",
)
# The language model's and the vision tower's names in the layouts that checkpoints come in.
_LAYOUTS = {
    "a bare model": (r"^", ""),
    "a language model with vision": (r"^", "model."),
    "its older form": (r"^language_model\.", "language_model.model."),
}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma3(tmp_path_factory.mktemp("models") / "tiny-gemma3")


@pytest.fixture(scope="module")
def late_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma3(tmp_path_factory.mktemp("models") / "tiny-colgemma3", late=True)


@pytest.fixture
def open_as(context: Callable):
    """Return a function that opens a folder as a job would; float32 unless a quantizer is given."""

    def get(heavy, options, folder: Path, quantizer=None):
        ctx = context()
        info = inspect_model(ModelRequest(str(folder)), ctx.cache)
        options.info(info)
        keywords = {"dtype": torch.float32} if quantizer is None else quantizer.load_kwargs(info, ctx)
        return heavy(options).open(folder, info, keywords, ctx)

    return get


def _page(seed: int, size: tuple[int, int] = (60, 80)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _encode(opened, items, role="document"):
    return opened.embed([opened.prepare(text, image, role) for text, image in items], role)


def _items():
    texts = [(text, None) for text in _TEXTS]
    return [*texts, (None, _page(0)), (None, _page(1, (90, 20))), ("the table on page four", _page(2))]


def _changed(folder: Path, out: Path, change: Callable[[dict], dict]) -> Path:
    """Copy a checkpoint with other tensors."""
    shutil.copytree(folder, out)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def _named(folder: Path, layout: str) -> dict:
    """Read a checkpoint's tensors, by the names of a layout."""
    old, new = _LAYOUTS[layout]
    tensors = load_file(folder / "model.safetensors")
    bare = {name.replace("language_model.model.", "language_model."): tensor for name, tensor in tensors.items()}
    return {re.sub(old, new, name): tensor for name, tensor in bare.items()}


@pytest.mark.parametrize("options", [BiGemma3Options("x"), BiGemma3Options("x", pooling="mean"), ColGemma3Options("x")])
def test_a_batch_gives_what_single_items_give(options, gemma, late_gemma, open_as):
    """Texts, pages and both at once: padding and neighbours change no vector."""
    late = isinstance(options, ColGemma3Options)
    opened = open_as(ColGemma3 if late else BiGemma3, options, late_gemma if late else gemma)
    together = _encode(opened, _items())
    for item, vector in zip(_items(), together, strict=True):
        alone = _encode(opened, [item])[0]
        assert vector.dtype == np.float32
        assert vector.shape == alone.shape
        np.testing.assert_allclose(vector, alone, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(vector, axis=-1), 1, atol=1e-5)


def test_late_interaction_gives_one_vector_a_token(late_gemma, open_as):
    """As many vectors of width 128 as the item has tokens, none of them padding."""
    opened = open_as(ColGemma3, ColGemma3Options("x"), late_gemma)
    prepared = [opened.prepare(text, None, "query") for text in _TEXTS]
    assert [vectors.shape for vectors in opened.embed(prepared, "query")] == [(each.tokens, 128) for each in prepared]


def test_texts_pages_and_both_differ(gemma, open_as):
    """No two of the items share a vector, and a text beside a page changes the page's."""
    vectors = np.stack(_encode(open_as(BiGemma3, BiGemma3Options("x", fusion="joint"), gemma), _items()))
    cosines = vectors @ vectors.T - np.eye(len(vectors))
    assert cosines.max() < 0.999
    page = _encode(open_as(BiGemma3, BiGemma3Options("x"), gemma), [(None, _page(2))])[0]
    assert vectors[-1] @ page < 0.999


def test_the_turn_is_the_one_of_training(gemma, open_as):
    """A doubled <bos>, no turn of the model after it, ``Query:`` before texts and the page before its request."""
    opened = open_as(BiGemma3, BiGemma3Options("x"), gemma)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma)
    text = tokenizer.decode(opened.prepare("barley", None, "query").inputs["input_ids"][0])
    assert text == "<bos><bos><start_of_turn>user\nQuery: barley<end_of_turn>\n"
    page = tokenizer.decode(opened.prepare(None, _page(0), "document").inputs["input_ids"][0])
    image = "<start_of_image>" + 4 * "<image_soft_token>" + "<end_of_image>"
    assert page == f"<bos><bos><start_of_turn>user\n\n\n{image}\n\nDescribe this image<end_of_turn>\n"


def test_items_are_prepared_in_threads(gemma, open_as):
    """Eight threads at once prepare what one after the other does."""
    opened = open_as(BiGemma3, BiGemma3Options("x"), gemma)
    texts = [f"{text} {number}" for number in range(40) for text in _TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: opened.prepare(text, None, "query").inputs["input_ids"], texts))
    assert all(
        torch.equal(a, opened.prepare(text, None, "query").inputs["input_ids"])
        for a, text in zip(found, texts, strict=True)
    )


@pytest.mark.parametrize("text", ["see <start_of_image> here", "<image_soft_token>", "barley " * 2048])
def test_a_text_that_cannot_be_encoded_is_an_item_error(text, gemma, open_as):
    """Tokens that stand for images, and more tokens than the model reads, are refused before the model sees them."""
    with pytest.raises(ItemError):
        open_as(BiGemma3, BiGemma3Options("x"), gemma).prepare(text, None, "document")


@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("late", [False, True], ids=["one vector", "late"])
def test_every_layout_of_names_is_loaded_whole(layout, late, gemma, late_gemma, open_as, tmp_path):
    """The vectors are the same whichever class and version saved the checkpoint, and whether it kept the head."""
    folder, heavy, options = (
        (late_gemma, ColGemma3, ColGemma3Options("x")) if late else (gemma, BiGemma3, BiGemma3Options("x"))
    )
    tensors = _named(folder, layout)
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = {"lm_head.weight": tensors[embedding]}
    if layout == "its older form":
        head = {f"language_model.{name}": tensor for name, tensor in head.items()}
    other = _changed(folder, tmp_path / "other", lambda _: {**tensors, **head})
    expected = _encode(open_as(heavy, options, folder), _items())
    for vector, same in zip(_encode(open_as(heavy, options, other), _items()), expected, strict=True):
        np.testing.assert_array_equal(vector, same)


@pytest.mark.parametrize("late", [False, True], ids=["one vector", "late"])
def test_a_missing_tensor_is_an_error(late, gemma, late_gemma, open_as, tmp_path):
    """Without one of its tensors a checkpoint is refused, whichever it is."""
    folder, heavy, options = (
        (late_gemma, ColGemma3, ColGemma3Options("x")) if late else (gemma, BiGemma3, BiGemma3Options("x"))
    )
    names = sorted(load_file(folder / "model.safetensors"))
    for number, name in enumerate([names[0], names[20], names[-1]]):
        kept = {each: tensor for each, tensor in load_file(folder / "model.safetensors").items() if each != name}
        broken = _changed(folder, tmp_path / str(number), lambda _, kept=kept: kept)
        with pytest.raises(ModelError, match=r"lacks .*(layers|custom_text_proj|vision_tower|norm|embed)"):
            open_as(heavy, options, broken)


def test_a_tensor_the_model_has_no_place_for_is_an_error(gemma, open_as, tmp_path):
    """An extra tensor is refused by name."""
    extra = {"multi_modal_projector.gate": torch.zeros(3)}
    folder = _changed(gemma, tmp_path / "extra", lambda tensors: {**tensors, **extra})
    with pytest.raises(ModelError, match=r"1 weight .*'multi_modal_projector.gate'"):
        open_as(BiGemma3, BiGemma3Options("x"), folder)


def test_a_renamed_tensor_is_an_error(gemma, open_as, tmp_path):
    """A layer under a name that the model does not know is missing, not random."""
    folder = _changed(
        gemma,
        tmp_path / "renamed",
        lambda tensors: {name.replace("layers.1.mlp.up_proj", "layers.1.mlp.up"): t for name, t in tensors.items()},
    )
    with pytest.raises(ModelError, match=r"lacks 1 of .*up_proj"):
        open_as(BiGemma3, BiGemma3Options("x"), folder)


def test_a_projection_of_another_shape_is_an_error(late_gemma, open_as, tmp_path):
    """The projection must fit the language model."""
    folder = _changed(
        late_gemma, tmp_path / "narrow", lambda tensors: {**tensors, "custom_text_proj.weight": torch.zeros(64, 64)}
    )
    with pytest.raises(ModelError, match=r"shape \(64, 64\), not \(128, 64\)"):
        open_as(ColGemma3, ColGemma3Options("x"), folder)


def test_only_what_the_caller_allows_may_be_left_in_the_file():
    """A head may stay behind where it is named, and nothing else."""
    report = {"missing_keys": set(), "unexpected_keys": {"language_model.lm_head.weight", "lm_head.weight"}}
    check_strict(report, "x", allowed=(HEAD,))
    with pytest.raises(ModelError, match="2 weights"):
        check_strict(report, "x")


def test_dims_are_those_of_training(gemma, context):
    """Of 2560, 1536 and 768 those below the width; any other is refused by name."""
    info = inspect_model(ModelRequest(str(gemma)), context().cache)
    assert BiGemma3Options().info(info).dims == (64,)
    large = replace(info, config={**info.config, "text_config": {"hidden_size": 2560}})
    assert BiGemma3Options(dim=1536).info(large).dims == (2560, 1536, 768)
    assert BiGemma3Options(dim=1536).info(large).dim == 1536
    with pytest.raises(OptionError, match="dim is 512"):
        BiGemma3Options(dim=512).info(large)


def test_each_embedder_refuses_the_checkpoints_of_the_other(gemma, late_gemma, context):
    """The names of the tensors tell them apart before anything is loaded; an adapter may bring the projection."""
    single, late = (inspect_model(ModelRequest(str(folder)), context().cache) for folder in (gemma, late_gemma))
    with pytest.raises(ModelError, match="custom_text_proj"):
        BiGemma3Options().info(late)
    with pytest.raises(ModelError, match="custom_text_proj"):
        ColGemma3Options().info(single)
    assert ColGemma3Options().info(replace(single, adapter=Adapter("sha256:0", None))).similarity == "maxsim"


def test_other_models_are_refused(tiny_model, context):
    """A model that sees no images, or is of another kind, is refused from its config.json."""
    llama = inspect_model(ModelRequest(str(tiny_model)), context().cache)
    for info in (llama, replace(llama, config={"model_type": "gemma3_text", "hidden_size": 640})):
        for options in (BiGemma3Options(), ColGemma3Options()):
            with pytest.raises(ModelError, match="not a Gemma 3 that sees images"):
                options.info(info)


def test_the_first_token_is_the_same_for_all(gemma, open_as, context):
    """That is why pooling it is refused."""
    options = BiGemma3Options("x", pooling="cls")
    vectors = _encode(open_as(BiGemma3, options, gemma), _items())
    assert np.ptp(np.stack(vectors), axis=0).max() < 1e-6
    with pytest.raises(UnsupportedError, match="same vector"):
        options.check(inspect_model(ModelRequest(str(gemma)), context().cache), "cpu")


@pytest.mark.parametrize(
    ("heavy", "options", "code"),
    [(Bnb8bit, Bnb8bitOptions(), "int8"), (Bnb4bit, Bnb4bitOptions(), "nf4")],
)
@pytest.mark.parametrize("late", [False, True], ids=["one vector", "late"])
def test_a_quantizer_applies_through_its_keywords(heavy, options, code, late, gemma, late_gemma, open_as, context):
    """Every linear layer of both towers is quantized, the projection is not; the bytes are as predicted."""
    folder, embedder, own = (
        (late_gemma, ColGemma3, ColGemma3Options("x")) if late else (gemma, BiGemma3, BiGemma3Options("x"))
    )
    info: ModelInfo = inspect_model(ModelRequest(str(folder)), context().cache)
    opened = open_as(embedder, own, folder, heavy(options))
    make_ready(opened.module, heavy(options))
    applied = heavy(options).applied(opened.module)
    assert (applied.code, applied.layers_quantized) == (code, len(info.linear_layers()))
    assert applied.layers_left == (("custom_text_proj",) if late else ())
    assert weight_bytes(opened.module).total == pytest.approx(options.weight_bytes(info, "cpu"), rel=0.01)
    exact = np.concatenate([np.atleast_2d(rows) for rows in _encode(open_as(embedder, own, folder), _items())])
    found = np.concatenate([np.atleast_2d(rows) for rows in _encode(opened, _items())])
    cosines = (exact * found).sum(axis=1)
    assert cosines.max() < 1 - 1e-6  # it did something
    assert np.median(cosines) > 0.8


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "DoRA"])
@pytest.mark.parametrize("late", [False, True], ids=["one vector", "late"])
def test_a_merged_adapter_gives_what_peft_gives(late, dora, gemma, late_gemma, open_as, tmp_path):
    """Through peft's own layers, and through the checkpoint that was written with the adapter in its weights."""
    import peft
    from transformers import Gemma3Model

    folder, heavy, options = (
        (late_gemma, ColGemma3, ColGemma3Options("x")) if late else (gemma, BiGemma3, BiGemma3Options("x"))
    )
    model = Gemma3Model.from_pretrained(folder, dtype=torch.float32)
    if late:
        stored = load_file(folder / "model.safetensors")
        model.custom_text_proj = torch.nn.Linear(64, 128)
        model.custom_text_proj.load_state_dict({n: stored[f"custom_text_proj.{n}"] for n in ("weight", "bias")})
    targets = r".*language_model.*(q_proj|down_proj)$|custom_text_proj$"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, use_dora=dora)
        adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    heavy(options).merge(folder, tmp_path / "adapter", tmp_path / "out")
    merged = open_as(heavy, options, tmp_path / "out")
    prepared = merged.prepare(_TEXTS[1], None, "query")
    with torch.no_grad():
        states = adapted(**prepared.inputs, use_cache=False).last_hidden_state
        rows = adapted.base_model.model.custom_text_proj(states)[0] if late else states[0, -1]
    expected = torch.nn.functional.normalize(rows, dim=-1).numpy()
    np.testing.assert_allclose(merged.embed([prepared], "query")[0], expected, atol=1e-5)
    plain = _encode(open_as(heavy, options, folder), [(_TEXTS[1], None)], "query")[0]
    assert np.abs(plain - expected).max() > 1e-2


def test_an_adapter_without_its_projection_is_refused(gemma, tmp_path):
    """An update to a projection that nobody saved would give random vectors; one that is saved whole is taken."""
    import peft
    from transformers import Gemma3Model

    for whole in (False, True):
        model = Gemma3Model.from_pretrained(gemma, dtype=torch.float32)
        model.custom_text_proj = torch.nn.Linear(64, 128)
        targets = ["q_proj"] if whole else ["q_proj", "custom_text_proj"]
        config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["custom_text_proj"] if whole else None)
        folder, out = tmp_path / f"adapter-{whole}", tmp_path / f"out-{whole}"
        peft.get_peft_model(model, config).save_pretrained(folder)
        out.mkdir()
        if whole:
            ColGemma3(ColGemma3Options("x")).merge(gemma, folder, out)
            assert "custom_text_proj.weight" in load_file(out / "model.safetensors")
        else:
            with pytest.raises(ModelError, match="custom_text_proj"):
                ColGemma3(ColGemma3Options("x")).merge(gemma, folder, out)


def test_a_checkpoint_without_a_processor_is_an_error(gemma, open_as, tmp_path):
    """What is missing is named."""
    for number, names in enumerate([("processor_config.json",), ("tokenizer.json", "tokenizer_config.json")]):
        folder = shutil.copytree(gemma, tmp_path / str(number))
        for name in names:
            (folder / name).unlink()
        with pytest.raises(ModelError, match="processor"):
            open_as(BiGemma3, BiGemma3Options("x"), folder)


def test_a_processor_saved_by_the_library_it_was_trained_with_is_read(gemma, open_as, tmp_path):
    """Of its class's name, and in separate files, as released checkpoints have them."""
    folder = shutil.copytree(gemma, tmp_path / "older")
    both = json.loads((folder / "processor_config.json").read_text())
    images = both.pop("image_processor")
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "processor_class": "BiGemmaProcessor3"}))
    (folder / "processor_config.json").write_text(json.dumps({**both, "processor_class": "BiGemmaProcessor3"}))
    options = BiGemma3Options("x")
    expected = _encode(open_as(BiGemma3, options, gemma), _items())
    found = _encode(open_as(BiGemma3, options, folder), _items())
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_a_merged_weight_is_rounded_once(gemma, tmp_path):
    """In a bfloat16 checkpoint, the sum of base and adapter is computed in float32."""
    import peft
    from transformers import Gemma3Model

    model = Gemma3Model.from_pretrained(gemma, dtype=torch.bfloat16)
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(gemma, base)
    model.save_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*q_proj$", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    BiGemma3(BiGemma3Options("x")).merge(base, tmp_path / "adapter", out)
    stored, merged = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "language_model.layers.0.self_attn.q_proj"
    down, up = (adapter[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
    (key,) = [key for key in stored if re.search(r"language_model.*layers\.0\..*q_proj\.weight", key)]
    expected = stored[key].float() + 2 * (up @ down)
    torch.testing.assert_close(merged[key], expected.bfloat16(), rtol=0, atol=0)
