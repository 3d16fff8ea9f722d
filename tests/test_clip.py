"""CLIP, SigLIP and SigLIP 2 give the vectors that transformers gives, for texts and for images."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from edits import edit_json, edit_tensors
from llmquant.embedders.clip.embedder import Clip
from llmquant.embedders.clip.options import ClipOptions
from llmquant.embedders.gemma3.options import BiGemma3Options
from llmquant.errors import ModelError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from tiny_clip import write_clip
from tiny_gemma3 import write_gemma3

KINDS = ("clip", "siglip", "siglip2")
TEXTS = ["how many sacks of barley?", "the ledger", "why is the river brown " * 20]


def _images():
    numbers = np.random.default_rng(0)
    return [Image.fromarray(numbers.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (90, 30))]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    for kind in KINDS:
        write_clip(root / kind, kind)
    return root


def _open(folder, context, tmp_path):
    options = ClipOptions(str(folder))
    info = inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))
    return Clip(options).open(folder, info, {"dtype": torch.float32}, context()), options.info(info)


def _unit(vectors):
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(kind, checkpoints, context, tmp_path):
    """Texts of all lengths and images of all shapes, mixed in one batch, equal the model's own two towers."""
    opened, info = _open(checkpoints / kind, context, tmp_path)
    model = transformers.AutoModel.from_pretrained(checkpoints / kind, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoints / kind)
    items = [opened.prepare(text, None, "document") for text in TEXTS]
    items[1:1] = [opened.prepare(None, image, "document") for image in _images()]
    vectors = np.stack(opened.embed(items, "document"))
    with torch.no_grad():
        texts = model.get_text_features(
            **processor(text=TEXTS, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        ).pooler_output
        images = model.get_image_features(**processor(images=_images(), return_tensors="pt")).pooler_output
    np.testing.assert_allclose(vectors[[0, 3, 4]], _unit(texts), atol=1e-5)
    np.testing.assert_allclose(vectors[1:3], _unit(images), atol=1e-5)
    assert (info.width, info.modalities, info.fusion) == (vectors.shape[1], ("text", "image"), "sum")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_items_give(kind, checkpoints, context, tmp_path):
    """Items of one batch have the vectors they have alone."""
    opened, _ = _open(checkpoints / kind, context, tmp_path)
    items = [opened.prepare(text, None, "query") for text in TEXTS]
    items += [opened.prepare(None, image, "query") for image in _images()]
    single = [opened.embed([item], "query")[0] for item in items]
    np.testing.assert_allclose(opened.embed(items, "query"), single, atol=1e-5)


def test_items_can_be_prepared_in_threads(checkpoints, context, tmp_path):
    """Eight threads prepare as one does."""
    opened, _ = _open(checkpoints / "siglip", context, tmp_path)
    work = [(text, None) for text in TEXTS] * 8 + [(None, image) for image in _images()] * 8
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(lambda item: opened.prepare(*item, "document"), work))
    for item, one in zip(prepared, work, strict=True):
        alone = opened.prepare(*one, "document").inputs
        assert all(torch.equal(value, alone[name]) for name, value in item.inputs.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_is_refused(kind, checkpoints, context, tmp_path):
    """A checkpoint without one of its tensors is not opened with random numbers in its place."""
    folder = shutil.copytree(checkpoints / kind, tmp_path / "copy")
    edit_tensors(folder, lambda tensors: tensors.pop("vision_model.encoder.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(ModelError, match="q_proj"):
        _open(folder, context, tmp_path)


def test_a_model_of_another_type_is_refused(tiny_model, tmp_path):
    """A causal language model is no model with two towers."""
    info = inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path))
    with pytest.raises(ModelError, match="'llama'"):
        ClipOptions("x").info(info)


BROKEN = {
    "image processor": ("*process*", {}, "has no image processor"),
    "tokenizer": ("token*", {}, "has no tokenizer"),
    "activation": (None, {"hidden_act": "swooosh"}, "has the activation 'swooosh'"),
}


@pytest.mark.parametrize(("gone", "changes", "words"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", ["clip", "gemma3"])
def test_files_that_transformers_cannot_load_are_refused_before_the_weights(
    checkpoints, tmp_path, kind, gone, changes, words
):
    """What is missing or unknown is named when a study is planned; without words, CLIP would read every text alike."""
    folder = tmp_path / "model"
    if kind == "clip":
        shutil.copytree(checkpoints / kind, folder)
    else:
        write_gemma3(folder)
    for file in folder.glob(gone) if gone else ():
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config=config["vision_config"] | changes)
    info = inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))
    with pytest.raises(ModelError, match=words):
        {"clip": ClipOptions, "gemma3": BiGemma3Options}[kind]().check(info, "cpu")
