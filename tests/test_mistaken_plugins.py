"""Plugins are free in what they replace, and answers of the wrong kind are named with class, method and field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import leaving
import llmquant as lq
from llmquant.errors import LlmquantError, PluginError
from llmquant.loading.row_independence import check_row_independence
from llmquant.loading.token_rows import embedding_rows
from llmquant.planning.lookup import inspect_embedder
from llmquant.plugins.registry import Chosen, registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest, PluginUse

_GOOD = {"width": 4, "dims": (4, 2), "modalities": ("text",), "similarity": "cosine", "fusion": "joint"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register a quantizer and an embedder, whose methods a test replaces."""
    before = list(registry().plugins)
    lq.register(leaving.QUANTIZER)
    lq.register(leaving.EMBEDDER)
    yield
    registry().plugins = before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "4"}, "info().width must be a whole number, found '4'"),
        ({"width": np.int64(4)}, "info().width must be a whole number"),
        ({"width": 0}, "info() has width 0, dims (4, 2)"),
        ({"dims": ()}, "info() has width 4, dims ()"),
        ({"dims": (8, 4)}, "info() has width 4, dims (8, 4)"),
        ({"dims": 4}, "info().dims must be a list"),
        ({"modalities": "text"}, "info().modalities must be a list"),
        ({"modalities": ()}, "and modalities ()"),
        ({"similarity": "euclid"}, "info().similarity is 'euclid'"),
        ({"fusion": "concat"}, "info().fusion is 'concat'"),
    ],
)
def test_a_wrong_description_of_vectors_names_the_field(changes: dict, message: str, tmp_path: Path):
    """Before anything is loaded."""
    plugin = registry().find("embedder", "leaving_vectors")[0]
    options = SimpleNamespace(checkpoint="", info=lambda model: lq.EmbedderInfo(**{**_GOOD, **changes}))
    chosen = Chosen(plugin, options, PluginUse("theirs/mine", "1", {}, "mine"))
    with pytest.raises(PluginError) as raised:
        inspect_embedder(chosen, ModelRequest("mine"), Cache(tmp_path))
    assert str(raised.value).startswith("theirs/mine: info()")
    assert message in str(raised.value)


def _raises(*arguments: object, **keywords: object) -> object:
    raise KeyError("odd")


def _exits(*arguments: object, **keywords: object) -> object:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("prepare", lambda self, *item: None, "prepare returned None (NoneType)"),
        ("prepare", lambda self, text, *item: (3, text), "prepare returned (3, "),
        ("prepare", lambda self, text, *item: lq.Prepared("3", text), "Prepared.tokens is '3'"),
        ("prepare", lambda self, text, *item: lq.Prepared(-1, text), "Prepared.tokens is -1"),
        ("module", "weights", "leaving:Embedder: open returned _Opened, which has no torch.nn.Module as module"),
        ("module", property(_raises), "leaving:Embedder: open failed: KeyError: 'odd'"),
    ],
)
def test_an_opened_embedder_of_the_wrong_kind_is_refused(
    name: str, method: object, message: str, monkeypatch: pytest.MonkeyPatch
):
    """As it is loaded."""
    monkeypatch.setattr(leaving._Opened, "__init__", lambda self: None)
    monkeypatch.setattr(leaving._Opened, "module", torch.nn.Linear(2, 2, dtype=torch.bfloat16), raising=False)
    monkeypatch.setattr(leaving._Opened, name, method)
    with pytest.raises(PluginError, match=re.escape(message)):
        lq.load_embedder("leaving_vectors", device="cpu")


@pytest.mark.parametrize("fault", [_raises, _exits])
@pytest.mark.parametrize("method", ["load_kwargs", "after_load", "applied"])
def test_a_quantizer_that_raises_is_named_with_its_method(
    method: str, fault: object, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also if it would end the program."""
    monkeypatch.setattr(leaving.Quantizer, method, fault, raising=False)
    with pytest.raises(LlmquantError, match=rf"leaving:Quantizer: {method} failed: (KeyError: 'odd'|SystemExit: 0)"):
        lq.load(str(tiny_model), "leaving", device="cpu")


class _Rounded(torch.nn.Module):
    """An embedding without a ``weight``."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self.register_buffer("rows", embedding.weight.detach().to(torch.float8_e5m2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids, self.rows.float())


def test_a_quantizer_may_replace_the_embedding(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """By a layer of its own, which need not have the weight of an ordinary one."""

    def after_load(self: object, module: torch.nn.Module, *, to_save: bool) -> None:
        module.set_input_embeddings(_Rounded(module.get_input_embeddings()))

    monkeypatch.setattr(leaving.Quantizer, "after_load", after_load, raising=False)
    subject = lq.load(str(tiny_model), "leaving", device="cpu")
    assert embedding_rows(subject.module) == len(subject.module.get_input_embeddings().rows)
    assert check_row_independence(subject, "leaving")
