"""Models that mteb has code for, as embedders: opened from files that are here, encoded as mteb encodes."""

from __future__ import annotations

import itertools

import datasets
import mteb
import numpy as np
import pytest
import torch
from mteb.types import PromptType
from torch.utils.data import DataLoader

from llmquant.catalogs import mteb as mteb_index
from llmquant.catalogs.mteb import MtebEmbedder, MtebIndex
from llmquant.embedders.mteb_model.embedder import MtebModelEmbedder
from llmquant.embedders.mteb_model.options import MtebModelOptions
from llmquant.errors import OptionError, UnknownNameError, UnsupportedError
from llmquant.models.info import ModelInfo
from mteb_tasks import WORDS, metadata

NAME = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [f"the {word} and the {other}" for word, other in itertools.pairwise(WORDS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a model of mteb's class: one vector per word, and their mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(("?", "the", "and", *WORDS))}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "static"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=384)]).save(str(path))
    return path


@pytest.fixture(autouse=True)
def known(monkeypatch):
    found = {
        NAME: MtebEmbedder((384,), ("text",), "cosine"),
        "some/nested": MtebEmbedder((384, 64), ("text", "image", "audio"), "dot"),
        "some/distance": MtebEmbedder((384,), ("text",), "euclidean"),
    }
    monkeypatch.setattr(mteb_index, "known_mteb", lambda cache: MtebIndex("1", {}, {}, found))


def info(repo=None):
    return ModelInfo(repo or "./static", "sha256:0", (), "folder", None, repo, None, {}, {}, (), 0)


def test_vectors_are_those_of_mteb(folder, context):
    """Queries and documents, in batches, equal what mteb's own class gives."""
    opened = MtebModelEmbedder(MtebModelOptions(str(folder), name=NAME)).open(folder, info(), {}, context())
    prepared = [opened.prepare(text, None, "query") for text in TEXTS]
    found = opened.embed(prepared, "query")
    stock = (
        mteb.get_model_meta(NAME).model_copy(update={"name": str(folder), "revision": None}).load_model(device="cpu")
    )

    batches = DataLoader(datasets.Dataset.from_dict({"text": TEXTS}), batch_size=3)
    theirs = np.asarray(
        stock.encode(
            batches,
            task_metadata=metadata("Any", "t2t"),
            hf_split="test",
            hf_subset="default",
            prompt_type=PromptType.query,
        )
    )
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(np.stack(found) - theirs).max() < 1e-6
    assert [vector.shape for vector in found] == [(384,)] * len(TEXTS)


def test_the_dtype_of_a_baseline_is_used_and_other_quantizers_are_refused(folder, context):
    """What mteb's loader does not take is refused, not ignored."""
    embedder = MtebModelEmbedder(MtebModelOptions(str(folder), name=NAME))
    opened = embedder.open(folder, info(), {"dtype": torch.bfloat16}, context())
    assert {parameter.dtype for parameter in opened.module.parameters()} == {torch.bfloat16}
    with pytest.raises(UnsupportedError, match="does not support quantization_config"):
        embedder.open(folder, info(), {"dtype": torch.bfloat16, "quantization_config": object()}, context())


def test_what_mteb_says_is_known_before_loading():
    """Widths, modalities and similarity come from the index."""
    found = MtebModelOptions("some/nested", dim=64).info(info("some/nested"))
    assert (found.width, found.dims, found.dim) == (384, (384, 64), 64)
    assert (found.modalities, found.similarity) == (("text", "image"), "dot")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": "some/nestd"}, UnknownNameError, r"no model 'some/nestd'\nDid you mean 'some/nested'"),
        ({"checkpoint": "some/nested", "dim": 65}, OptionError, "cannot be cut to 65"),
        ({"checkpoint": "some/distance"}, UnsupportedError, "compares by euclidean"),
        ({"checkpoint": "./static"}, UnknownNameError, "mteb has no model"),
    ],
)
def test_models_that_cannot_be_opened_are_refused_early(options, error, message):
    """With the nearest name, or what mteb says of the model."""
    repo = None if options["checkpoint"].startswith(".") else options["checkpoint"]
    with pytest.raises(error, match=message):
        MtebModelOptions(**options).info(info(repo))
