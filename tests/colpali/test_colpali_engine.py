"""Our vectors are those of colpali-engine's own models and processors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("colpali_engine", exc_type=ImportError)  # without torchvision it cannot be imported either

import colpali_engine.models
from safetensors.torch import load_file, save_file

from edits import edit_tensors
from llmquant.embedders.colpali_engine.embedder import ColpaliEngine
from llmquant.embedders.colpali_engine.options import ARCHITECTURES, ColpaliEngineOptions
from llmquant.errors import ModelError, OptionError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest

EVERY = tuple(ARCHITECTURES)
QUERIES = ["how many sacks of barley were sold?", "ledger", "why is the river brown today, asked the boy"]
TEXTS = ["a page of text", "another, which is longer than the first"]


def _pages():
    numbers = np.random.default_rng(0)
    sizes = ((90, 60), (60, 150), (200, 190))
    return [Image.fromarray(numbers.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def _open(folder, context, tmp_path, **options):
    options = ColpaliEngineOptions(str(folder), **options)
    info = inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))
    return ColpaliEngine(options).open(folder, info, {"dtype": torch.float32}, context()), options.info(info)


def _library(name, folder):
    found = ARCHITECTURES[name]
    model = getattr(colpali_engine.models, found.model).from_pretrained(folder, dtype=torch.float32).eval()
    if name == "colpali":
        model.model.lm_head = torch.nn.Identity()
    processor = getattr(colpali_engine.models, found.processor).from_pretrained(folder)
    processor.query_prefix = found.query_prefix
    return model, processor


def _library_vectors(model, inputs):
    with torch.no_grad():
        vectors = model(**inputs)
    if vectors.ndim == 2:
        return list(vectors.numpy())
    return [row[mask.bool()].numpy() for row, mask in zip(vectors, inputs["attention_mask"], strict=True)]


def _parts(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def _without_labels(inputs):
    inputs.pop("labels", None)
    return inputs


def _close(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_vectors_are_those_of_the_library(name, tiny_checkpoint, context, tmp_path):
    """Pages of several sizes, queries and texts, in one batch each, equal the library's model and processor."""
    folder = tiny_checkpoint(name)
    opened, info = _open(folder, context, tmp_path)
    model, processor = _library(name, folder)
    pages = opened.embed([opened.prepare(None, page, "document") for page in _pages()], "document")
    queries = opened.embed([opened.prepare(query, None, "query") for query in QUERIES], "query")
    texts = opened.embed([opened.prepare(text, None, "document") for text in TEXTS], "document")
    # The library's ColPali attends causally in batches with padding, and only in those: there it is asked one by one.
    size = 1 if name == "colpali" else len(QUERIES)
    _close(pages, _library_vectors(model, _without_labels(processor.process_images(_pages()))))
    _close(
        queries,
        [each for part in _parts(QUERIES, size) for each in _library_vectors(model, processor.process_queries(part))],
    )
    _close(
        texts, [each for part in _parts(TEXTS, size) for each in _library_vectors(model, processor.process_texts(part))]
    )
    assert all(vectors.dtype == np.float32 and vectors.shape[-1] == info.width for vectors in (*pages, *queries))
    np.testing.assert_allclose(np.linalg.norm(np.vstack(pages), axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_gives_what_single_items_give(name, tiny_checkpoint, context, tmp_path):
    """Pages and texts of one batch have the vectors they have alone."""
    opened, _ = _open(tiny_checkpoint(name), context, tmp_path)
    items = [opened.prepare(None, page, "document") for page in _pages()]
    items += [opened.prepare(text, None, "document") for text in TEXTS]
    _close(opened.embed(items, "document"), [opened.embed([item], "document")[0] for item in items])


def test_scores_are_those_of_the_library(tiny_checkpoint, context, tmp_path):
    """The library's scorer gives the same scores for our vectors as for its own."""
    folder = tiny_checkpoint("colqwen2.5")
    opened, _ = _open(folder, context, tmp_path)
    model, processor = _library("colqwen2.5", folder)
    queries, pages = [(query, None) for query in QUERIES], [(None, page) for page in _pages()]
    ours = [
        [torch.from_numpy(each) for each in opened.embed([opened.prepare(*item, role) for item in items], role)]
        for items, role in ((queries, "query"), (pages, "document"))
    ]
    theirs = (
        [torch.from_numpy(each) for each in _library_vectors(model, processor.process_queries(QUERIES))],
        [torch.from_numpy(each) for each in _library_vectors(model, processor.process_images(_pages()))],
    )
    scores = [processor.score(*vectors, device="cpu").numpy() for vectors in (ours, theirs)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_an_item_with_both_has_the_vectors_of_both(tiny_checkpoint, context, tmp_path):
    """A page with a text has the page's vectors followed by the text's."""
    opened, _ = _open(tiny_checkpoint("colqwen2"), context, tmp_path)
    page, text = _pages()[0], TEXTS[0]
    prepared = [opened.prepare(*both, "document") for both in ((text, page), (None, page), (text, None))]
    both, alone, words = opened.embed(prepared, "document")
    np.testing.assert_allclose(both, np.concatenate([alone, words]), atol=1e-5)


def test_items_can_be_prepared_in_threads(tiny_checkpoint, context, tmp_path):
    """Eight threads prepare the same pages and texts as one."""
    opened, _ = _open(tiny_checkpoint("colsmol"), context, tmp_path)
    work = [(None, page) for page in _pages()] * 8 + [(text, None) for text in TEXTS] * 8
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(lambda item: opened.prepare(*item, "document"), work))
    for item, (text, page) in zip(prepared, work, strict=True):
        alone = opened.prepare(text, page, "document")
        assert all(torch.equal(value, alone.inputs[0][name]) for name, value in item.inputs[0].items())


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_tensor_is_refused(name, tiny_checkpoint, context, tmp_path):
    """A checkpoint without one of its tensors is not opened with random numbers in its place."""
    folder = _copy(tiny_checkpoint(name), tmp_path / "copy")
    edit_tensors(
        folder, lambda tensors: tensors.pop(next(k for k in tensors if k.endswith(("q_proj.weight", "Wqkv.weight"))))
    )
    with pytest.raises(ModelError):
        _open(folder, context, tmp_path)


def test_an_unexpected_tensor_is_refused(tiny_checkpoint, context, tmp_path):
    """A checkpoint with a tensor that the model has no place for is not opened."""
    folder = _copy(tiny_checkpoint("colqwen2"), tmp_path / "copy")
    edit_tensors(folder, lambda tensors: tensors.update({"second_projection.weight": torch.zeros(4, 4)}))
    with pytest.raises(ModelError):
        _open(folder, context, tmp_path)


# Names before transformers moved the language model into a module of its own: those of the released checkpoints.
_OLD_NAMES = {
    "colpali": (("model.model.language_model.", "model.language_model.model."), ("model.model.", "model.")),
    "colqwen2": (("language_model.", "model."),),
    "colqwen2.5": (("language_model.", "model."),),
}


@pytest.mark.parametrize("name", _OLD_NAMES)
def test_checkpoints_with_older_names_load(name, tiny_checkpoint, context, tmp_path):
    """A checkpoint with the names of the released ones gives the same vectors as one with today's."""
    opened, _ = _open(tiny_checkpoint(name), context, tmp_path)
    tensors = {key: value.contiguous() for key, value in opened.module.state_dict().items()}
    folder = _copy(tiny_checkpoint(name), tmp_path / "copy")
    renamed = {_rename(key, _OLD_NAMES[name]): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    again, _ = _open(folder, context, tmp_path)
    for key, value in again.module.state_dict().items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=0)


def _rename(key, names):
    for new, old in names:
        if key.startswith(new):
            return old + key.removeprefix(new)
    return key


def test_a_wrong_architecture_is_refused_before_loading(tiny_checkpoint, tmp_path):
    """Asking for colpali with a colqwen2 checkpoint names both."""
    info = inspect_model(ModelRequest(str(tiny_checkpoint("colqwen2"))), Cache(tmp_path))
    with pytest.raises(ModelError, match="is a colqwen2, not a colpali"):
        ColpaliEngineOptions("x", architecture="colpali").info(info)


def test_a_model_of_another_kind_is_refused(tiny_checkpoint, tmp_path):
    """A checkpoint that is none of the library's names its type."""
    info = inspect_model(ModelRequest(str(tiny_checkpoint("colqwen2"))), Cache(tmp_path))
    with pytest.raises(ModelError, match="'llama'"):
        ColpaliEngineOptions("x").info(replace(info, config={"model_type": "llama"}))


def test_max_visual_tokens_shrinks_pages(tiny_checkpoint, context, tmp_path):
    """A page has at most as many image tokens as asked for, and models of a fixed size refuse the option."""
    opened, _ = _open(tiny_checkpoint("colqwen2"), context, tmp_path, max_visual_tokens=6)
    inputs = opened.prepare(None, _pages()[2], "document").inputs[0]
    assert 4 <= int((inputs["input_ids"] == opened.module.config.image_token_id).sum()) <= 6
    with pytest.raises(OptionError, match="max_visual_tokens"):
        ColpaliEngineOptions("x", architecture="colpali", max_visual_tokens=6)


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colqwen2.5", "colsmol"])
def test_an_adapter_is_merged_as_peft_merges_it(name, tiny_checkpoint, context, tmp_path):
    """A LoRA adapter on the language model and the projection, merged, gives the vectors that peft gives."""
    import peft

    folder, adapter, out = tiny_checkpoint(name), tmp_path / "adapter", tmp_path / "out"
    model, processor = _library(name, folder)
    _peft_model(peft, model).save_pretrained(adapter)
    out.mkdir()
    ColpaliEngine(ColpaliEngineOptions(str(folder))).merge(folder, adapter, out)
    merged, _ = _open(out, context, tmp_path)
    plain, _ = _open(folder, context, tmp_path)
    adapted = peft.PeftModel.from_pretrained(_library(name, folder)[0], adapter).eval()
    ours = merged.embed([merged.prepare(query, None, "query") for query in QUERIES], "query")
    base = plain.embed([plain.prepare(query, None, "query") for query in QUERIES], "query")
    _close(ours, [_library_vectors(adapted, processor.process_queries([query]))[0] for query in QUERIES])
    assert max(np.abs(mine - other).max() for mine, other in zip(ours, base, strict=True)) > 1e-2


def test_an_adapter_with_older_names_is_merged(tiny_checkpoint, context, tmp_path):
    """An adapter whose modules have the names of the released ones gives the same weights as one with today's."""
    import peft

    folder, outs = tiny_checkpoint("colqwen2"), (tmp_path / "new", tmp_path / "old")
    adapter = tmp_path / "adapter"
    _peft_model(peft, _library("colqwen2", folder)[0]).save_pretrained(adapter)
    for out in outs:
        out.mkdir()
        ColpaliEngine(ColpaliEngineOptions(str(folder))).merge(folder, adapter, out)
        tensors = load_file(adapter / "adapter_model.safetensors")
        renamed = {key.replace("model.language_model.", "model.model."): value for key, value in tensors.items()}
        assert renamed.keys() != tensors.keys() or out == outs[1]
        save_file(renamed, adapter / "adapter_model.safetensors")
    new, old = (load_file(out / "model.safetensors") for out in outs)
    for key, value in new.items():
        torch.testing.assert_close(value, old[key], rtol=0, atol=0)


def _peft_model(peft, model):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights=False,
        target_modules=r".*(language_model|text_model).*(q_proj|down_proj)$|.*(custom_text_proj|linear)$",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(model, config)


def test_an_adapter_of_another_kind_is_refused(tiny_checkpoint, tmp_path):
    """An adapter that is no LoRA says that it cannot be merged here, and what to do."""
    import peft

    folder = tiny_checkpoint("colqwen2")
    config = peft.IA3Config(target_modules=r".*q_proj$", feedforward_modules=[])
    peft.get_peft_model(_library("colqwen2", folder)[0], config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="IA3"):
        ColpaliEngine(ColpaliEngineOptions(str(folder))).merge(folder, tmp_path / "adapter", tmp_path)


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to
