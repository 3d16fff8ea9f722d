"""A checkpoint that transformers or sentence-transformers cannot load is refused when a study is planned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edits import edit_json
from llmquant.errors import ModelError, RequestError, UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_local_files
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from llmquant.testing import tiny_embedder


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., ModelInfo]:
    def look(folder: Path, **permissions: bool) -> ModelInfo:
        request = ModelRequest(str(folder), **permissions)
        info = inspect_subject(request, registry(), Cache(tmp_path / "cache"))
        if info.embedder is None:
            check_local_files(info)
        else:
            registry().restore("embedder", info.embedder).ask("check", info, "cpu")
        return info

    return look


@pytest.mark.parametrize(
    ("changes", "kind", "said", "hint"),
    [
        ({"model_type": "foo"}, ModelError, "model type 'foo', which transformers .* does not know", "Upgrade"),
        ({"model_type": "foo", "transformers_version": "99.1"}, ModelError, "not know", r'"transformers>=99\.1"'),
        ({"model_type": None}, ModelError, "has no model_type", "Add it"),
        ({"model_type": "llava"}, UnsupportedError, "does not load as a causal language model", "text"),
        ({"rope_scaling": {"rope_type": "foo", "factor": 2.0}}, ModelError, "the RoPE type 'foo'", "Correct"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "foo"}}},
            ModelError,
            "RoPE type 'foo', which",
            "Correct",
        ),
        ({"hidden_size": "64"}, ModelError, "hidden_size of .* is '64', not a number", "Correct"),
        ({"hidden_size": 999}, ModelError, "rows of 64 numbers, and its hidden_size is 999", "belongs to another"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    folder: Path, inspect: Callable[..., ModelInfo], changes: dict[str, Any], kind: type, said: str, hint: str
):
    """The message names what was found, and what would fit."""
    edit_json(folder / "config.json", **changes)
    with pytest.raises(kind, match=rf"(?s){said}.*{hint}"):
        inspect(folder)


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn", "longrope", "llama3"])
def test_rotary_embeddings_of_transformers_are_taken(folder: Path, inspect: Callable[..., ModelInfo], kind: str):
    """Under the name of today, and under the one of older checkpoints."""
    for settings in ({"rope_scaling": {"type": kind, "factor": 2.0}}, {"rope_parameters": {"rope_type": kind}}):
        edit_json(folder / "config.json", **settings)
        assert inspect(folder).kind == "folder"


def test_an_architecture_of_its_own_code_is_not_looked_up(folder: Path, inspect: Callable[..., ModelInfo]):
    """Transformers does not know it, and need not."""
    edit_json(folder / "config.json", model_type="foo", auto_map={"AutoModelForCausalLM": "modeling.Foo"})
    assert inspect(folder, trust_remote_code=True).config["model_type"] == "foo"


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, inspect: Callable[..., ModelInfo]):
    """Settings alone are none, except of a tokenizer of bytes, which has no words."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer: neither"):
        inspect(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    inspect(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (folder / "vocab.txt").write_text("a\n")
    inspect(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, inspect: Callable[..., ModelInfo], name: str):
    """It stands where the file was not fetched."""
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n")
    with pytest.raises(ModelError, match=rf"(?s){name} is a pointer of Git LFS, .*git lfs pull"):
        inspect(folder)


def test_an_adapter_names_its_base(folder: Path, inspect: Callable[..., ModelInfo]):
    """A causal language model is merged with it first."""
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match="holds an adapter for 'org/base', not a model"):
        inspect(folder)


def _without_pooling(folder: Path) -> None:
    shutil.rmtree(folder / "1_Pooling")


def _modules(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:  # Any: JSON
    def edit_modules(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        change(modules)
        (folder / "modules.json").write_text(json.dumps(modules))

    return edit_modules


def _dense(folder: Path) -> None:
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    _modules(lambda modules: modules.append(dense))(folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 16}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_pooling, r"names the module 1_Pooling \(Pooling\), and 1_Pooling/config.json is missing"),
        (_dense, r"names the module 2_Dense \(Dense\), and 2_Dense/model.safetensors is missing"),
        (_modules(lambda modules: modules.pop(0)), "begins with Pooling, which cannot read texts"),
        (_modules(lambda modules: modules.clear()), "lists no modules"),
        (lambda folder: edit_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=64), "of width 64"),
        (lambda folder: edit_json(folder / "config.json", model_type="foo"), "model type 'foo'"),
        (lambda folder: edit_json(folder / "config.json", hidden_size=48), "its hidden_size is 48"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_a_damaged_sentence_transformer_is_refused(
    tmp_path: Path, inspect: Callable[..., ModelInfo], damage: Callable[[Path], object], said: str
):
    """The module, the file or the setting is named; the whole model passes."""
    folder = tiny_embedder(tmp_path / "embedder")
    inspect(folder)
    damage(folder)
    with pytest.raises(RequestError, match=said):
        inspect(folder)
