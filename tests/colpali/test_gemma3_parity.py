"""Our Gemma 3 embedders give the vectors of colpali-engine's own classes and processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llmquant.embedders.gemma3.embedder import BiGemma3, ColGemma3
from llmquant.embedders.gemma3.options import BiGemma3Options, ColGemma3Options
from llmquant.models.info import inspect_model
from llmquant.study.experiment import ModelRequest
from tiny_gemma3 import write_gemma3

_TEXTS = ["barley", "How much did revenue grow by quarter, and which table on which page shows it?"]


@pytest.fixture(scope="module", params=[False, True], ids=["BiGemma3", "ColGemma3"])
def checkpoint(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """Write one as wide as `BiGemma3` needs: it cuts to 768, 1536 or 2560, and full width is one of them."""
    return write_gemma3(
        tmp_path_factory.mktemp("models") / "gemma3", hidden_size=768, late=request.param
    ), request.param


@pytest.fixture
def ours(checkpoint, context: Callable):
    folder, late = checkpoint
    info = inspect_model(ModelRequest(str(folder)), context().cache)
    embedder = ColGemma3(ColGemma3Options("x")) if late else BiGemma3(BiGemma3Options("x"))
    return embedder.open(folder, info, {"dtype": torch.float32}, context())


@pytest.fixture
def theirs(checkpoint):
    """Build the class from the configuration and give it the weights: its ``from_pretrained`` leaves some random."""
    from colpali_engine.models import gemma3
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ImageProcessorPil

    folder, late = checkpoint
    name, processor = ("ColGemma3", "ColGemmaProcessor3") if late else ("BiGemma3", "BiGemmaProcessor3")
    model = getattr(gemma3, name)(Gemma3Config.from_pretrained(folder)).eval()
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({n.replace("language_model.model.", "language_model."): t for n, t in tensors.items()})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = Gemma3ImageProcessorPil.from_pretrained(folder)
    return model, getattr(gemma3, processor)(images, tokenizer, tokenizer.chat_template, image_seq_length=4)


def _pages() -> list[Image.Image]:
    sizes = ((60, 80), (200, 31))
    return [
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def _assert_equal(checkpoint, theirs, batch, found) -> None:
    (model, _), (_, late) = theirs, checkpoint
    with torch.no_grad():
        vectors = model(**batch) if late else model(embedding_dim=768, **batch)
    for row, mask, vector in zip(vectors, batch["attention_mask"].bool(), found, strict=True):
        np.testing.assert_allclose(vector, row[mask].numpy() if late else row.numpy(), atol=1e-5)


def test_texts_have_the_librarys_vectors(checkpoint, ours, theirs):
    """In one padded batch with the library's processor."""
    found = ours.embed([ours.prepare(text, None, "query") for text in _TEXTS], "query")
    _assert_equal(checkpoint, theirs, theirs[1].process_texts(_TEXTS), found)


def test_pages_have_the_librarys_vectors(checkpoint, ours, theirs):
    """Of two shapes, which become one."""
    found = ours.embed([ours.prepare(None, page, "document") for page in _pages()], "document")
    _assert_equal(checkpoint, theirs, theirs[1].process_images(_pages()), found)


def test_inputs_are_the_librarys(checkpoint, ours, theirs):
    """Token for token, the doubled <bos> among them."""
    for text in _TEXTS:
        tokens = theirs[1].process_texts([text])["input_ids"]
        assert torch.equal(ours.prepare(text, None, "query").inputs["input_ids"], tokens)
        assert tokens[0, :2].tolist() == [2, 2]
    for page in _pages():
        inputs = theirs[1].process_images([page])
        own = ours.prepare(None, page, "document").inputs
        assert all(torch.equal(own[name], inputs[name]) for name in ("input_ids", "pixel_values", "token_type_ids"))


@pytest.mark.parametrize("checkpoint", [False], indirect=True, ids=["BiGemma3"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_poolings_are_the_librarys(pooling, checkpoint, theirs, context):
    """The mean leaves padding out."""
    folder, _ = checkpoint
    info = inspect_model(ModelRequest(str(folder)), context().cache)
    ours = BiGemma3(BiGemma3Options("x", pooling=pooling)).open(folder, info, {"dtype": torch.float32}, context())
    found = ours.embed([ours.prepare(text, None, "query") for text in _TEXTS], "query")
    with torch.no_grad():
        expected = theirs[0](pooling_strategy=pooling, embedding_dim=768, **theirs[1].process_texts(_TEXTS))
    np.testing.assert_allclose(np.stack(found), expected.numpy(), atol=1e-5)
