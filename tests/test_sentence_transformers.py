"""Models of sentence-transformers give the vectors that the library gives, with the right prompts, and load whole."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from edits import edit_json
from llmquant.embedders.sentence_transformers.embedder import SentenceTransformers
from llmquant.embedders.sentence_transformers.options import SentenceTransformersOptions
from llmquant.errors import ModelError, OptionError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from tiny_sentence_transformer import save_tiny_sentence_transformer

TEXTS = ["how many sacks of barley?", "the ledger", "why is the river brown, and the total due in thirty days?"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_tiny_sentence_transformer(tmp_path_factory.mktemp("st") / "plain")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    prompts = {"query": "how many ", "document": "page: "}
    return save_tiny_sentence_transformer(
        tmp_path_factory.mktemp("st") / "prompted", dense=12, prompts=prompts, similarity="dot"
    )


def _inspect(folder, tmp_path):
    return inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))


def _open(folder, context, tmp_path, *, dtype=torch.float32, **options):
    plugin = SentenceTransformers(SentenceTransformersOptions(str(folder), **options))
    return plugin.open(folder, _inspect(folder, tmp_path), {"dtype": dtype}, context())


def _embed(opened, texts, role):
    return np.stack(opened.embed([opened.prepare(text, None, role) for text in texts], role))


def test_vectors_are_those_of_the_library(plain, context, tmp_path):
    """Queries and documents equal ``encode_query`` and ``encode_document`` at unit length."""
    opened, library = _open(plain, context, tmp_path), SentenceTransformer(str(plain), device="cpu")
    for role, encode in (("query", library.encode_query), ("document", library.encode_document)):
        expected = encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(_embed(opened, TEXTS, role), expected, atol=1e-5)


def test_a_batch_gives_what_single_texts_give(plain, context, tmp_path):
    """Texts of one batch have the vectors they have alone."""
    opened = _open(plain, context, tmp_path)
    single = np.concatenate([_embed(opened, [text], "document") for text in TEXTS])
    np.testing.assert_allclose(_embed(opened, TEXTS, "document"), single, atol=1e-5)


def test_padding_on_the_left_moves_no_text_to_other_positions(plain, context, tmp_path):
    """With absolute positions and the last token, texts of one batch have the vectors they have alone too."""
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="lasttoken")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1, normalize_embeddings=True)
    np.testing.assert_allclose(_embed(_open(folder, context, tmp_path), TEXTS, "query"), expected, atol=1e-5)


def test_each_role_gets_its_prompt(prompted, context, tmp_path):
    """The prompts of the model's configuration go to queries and documents, and other prompts can be given."""
    library = SentenceTransformer(str(prompted), device="cpu")
    opened = _open(prompted, context, tmp_path)
    np.testing.assert_allclose(_embed(opened, TEXTS, "query"), library.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(_embed(opened, TEXTS, "document"), library.encode_document(TEXTS), atol=1e-5)
    other = _open(prompted, context, tmp_path, query_prompt="", document_prompt="table: ")
    np.testing.assert_allclose(_embed(other, TEXTS, "query"), library.encode(TEXTS, prompt=""), atol=1e-5)
    expected = library.encode(TEXTS, prompt="table: ")
    np.testing.assert_allclose(_embed(other, TEXTS, "document"), expected, atol=1e-5)


def test_its_files_tell_what_it_gives(plain, prompted, tmp_path):
    """The width comes from the last module, the similarity and the dimensions from what is known."""
    info = SentenceTransformersOptions("x").info(_inspect(prompted, tmp_path))
    assert (info.width, info.dims, info.modalities, info.similarity) == (12, (12,), ("text",), "dot")
    cut = SentenceTransformersOptions("x", dim=8, dims=(16, 8)).info(_inspect(plain, tmp_path))
    assert (cut.width, cut.dims, cut.dim, cut.similarity) == (32, (32, 16, 8), 8, "cosine")


def test_more_dimensions_than_it_gives_are_refused(plain, tmp_path):
    """Cutting 32 numbers to 64 is refused before anything is loaded."""
    with pytest.raises(OptionError, match="64"):
        SentenceTransformersOptions("x", dim=64).info(_inspect(plain, tmp_path))


@pytest.mark.parametrize("dense", [None, 12])
def test_it_runs_in_bfloat16(dense, context, tmp_path):
    """The quantizer's type reaches all modules, and vectors come out as float32 of unit length."""
    folder = save_tiny_sentence_transformer(tmp_path / "model", dense=dense)
    opened = _open(folder, context, tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in opened.module.parameters()} == {torch.bfloat16}
    vectors = _embed(opened, TEXTS, "query")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_texts_can_be_prepared_in_threads(plain, context, tmp_path):
    """Eight threads prepare as one does."""
    opened = _open(plain, context, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(lambda text: opened.prepare(text, None, "document"), TEXTS * 20))
    assert prepared == [opened.prepare(text, None, "document") for text in TEXTS * 20]


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_with_other_tensors_is_refused(change, context, tmp_path):
    """A missing or an unexpected tensor is an error, though sentence-transformers itself only warns."""
    folder = save_tiny_sentence_transformer(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["encoder.layer.1.attention.self.query.weight"]
    else:
        tensors["encoder.layer.2.attention.self.query.weight"] = torch.zeros(32, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="query"):
        _open(folder, context, tmp_path)


def _store_codes(folder):
    tensors = load_file(folder / "2_Dense" / "model.safetensors")
    codes = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(codes, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def _add_words(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["barley?"])
    tokenizer.save_pretrained(folder)


DAMAGE = {
    "the table of modules": (lambda folder: (folder / "modules.json").unlink(), "modules.json is missing"),
    "a module": (lambda folder: shutil.rmtree(folder / "2_Dense"), "cannot load"),
    "a setting": (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "cannot load"),
    "a width": (lambda folder: edit_json(folder / "2_Dense" / "config.json", out_features=16), "cannot load"),
    "codes": (_store_codes, "of 2_Dense as int8"),
    "words": (_add_words, "1 token without a row"),
    "positions": (
        lambda folder: edit_json(folder / "sentence_bert_config.json", max_seq_length=512),
        "reads 512 tokens, but it has 64 positions",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_modules_and_tokenizer_belong_to_the_model(prompted, context, tmp_path, damage, words):
    """sentence-transformers would take another pooling or codes for numbers, or fail in the first long text."""
    folder = Path(shutil.copytree(prompted, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError, match=words):
        _open(folder, context, tmp_path)


def _edit_modules(folder, position, **changes):
    modules = json.loads((folder / "modules.json").read_text())
    modules[position] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


UNKNOWN = {
    "pooling": ("1_Pooling", {"pooling_mode": "attention"}, "the pooling mode 'attention'"),
    "old pooling": ("1_Pooling", {"pooling_mode_attention": True}, "the setting 'pooling_mode_attention'"),
    "several poolings": ("1_Pooling", {"pooling_mode": ["mean", "max"]}, "width 32, and its pooling returns 64"),
    "activation": ("2_Dense", {"activation_function": "other.Swish"}, "the activation function other.Swish"),
    "residual": ("2_Dense", {"use_residual": True}, "the setting 'use_residual'"),
    "pairs": ("", {"model_type": "CrossEncoder"}, "was saved as a CrossEncoder"),
    "default prompt": ("", {"default_prompt_name": "STS"}, "there is no prompt 'STS'"),
    "prompt": ("", {"prompts": {"query": 5}}, "the prompt 'query' is 5"),
    "distance": ("", {"similarity_fn_name": "euclidean"}, "compares vectors by euclidean"),
}


@pytest.mark.parametrize(("module", "changes", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_settings_are_refused_before_anything_is_loaded(prompted, tmp_path, module, changes, words):
    """Of some, sentence-transformers takes a default and only logs it; of others, it loads the weights first."""
    folder = Path(shutil.copytree(prompted, tmp_path / "model"))
    edit_json(folder / module / ("config.json" if module else "config_sentence_transformers.json"), **changes)
    options, info = SentenceTransformersOptions("x"), _inspect(folder, tmp_path)
    with pytest.raises(ModelError, match=words):
        _ = options.info(info), options.check(info, "cpu")


@pytest.mark.parametrize("kind", ["pylate.models.Dense.Dense", "sentence_transformers.models.SpladePooling"])
def test_modules_of_other_libraries_are_refused_before_anything_is_loaded(prompted, tmp_path, kind):
    """A model with code of its own needs the consent to run it."""
    folder = Path(shutil.copytree(prompted, tmp_path / "model"))
    _edit_modules(folder, 2, type=kind)
    with pytest.raises(ModelError, match=kind):
        SentenceTransformersOptions("x").check(_inspect(folder, tmp_path), "cpu")


def test_vectors_that_the_model_cuts_itself_are_as_wide_as_it_says(plain, context, tmp_path):
    """``truncate_dim`` in its settings gives the width, and cut vectors have unit length."""
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=8)
    assert SentenceTransformersOptions("x").info(_inspect(folder, tmp_path)).dims == (8,)
    library = SentenceTransformer(str(plain), device="cpu").encode_query(TEXTS)[:, :8]
    expected = library / np.linalg.norm(library, axis=1, keepdims=True)
    np.testing.assert_allclose(_embed(_open(folder, context, tmp_path), TEXTS, "query"), expected, atol=1e-5)


def test_a_weight_under_two_names_is_refused(plain, context, tmp_path):
    """Transformers loads one over the other."""
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file(tensors | {f"bert.{name}": tensors[name].neg()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="which are one weight"):
        _open(folder, context, tmp_path)


def test_a_pooler_that_is_not_used_may_be_missing(plain, context, tmp_path):
    """Vectors are means of token states, so BERT's pooler is not needed."""
    folder = save_tiny_sentence_transformer(tmp_path / "model")
    tensors = {name: t for name, t in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = _embed(_open(plain, context, tmp_path), TEXTS, "query")
    np.testing.assert_allclose(_embed(_open(folder, context, tmp_path), TEXTS, "query"), expected, atol=1e-5)
