"""An embedder in a notebook: refused as a study refuses it, and plain mistakes are named."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import llmquant as lq
from llmquant.errors import ItemError, LlmquantError, MissingDependencyError, OptionError, UnsupportedError
from llmquant.plugins.registry import registry


@dataclass(frozen=True)
class Options(lq.EmbedderOptions):
    """Options of an embedder that runs on GPUs only."""

    checkpoint: str = ""
    dim: int | None = None

    def info(self, model):
        return lq.EmbedderInfo(64, (64, 32), dim=self.dim)

    def check(self, model, device):
        if device == "cpu":
            raise UnsupportedError("mine needs a GPU")


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    random = "llmquant.embedders.chance"
    for name, fields in (
        ("mine", {"options": f"{__name__}:Options"}),
        ("far", {"options": f"{random}.options:ChanceOptions", "requires": ("no-such-package>=1",)}),
    ):
        target = f"{random}.embedder:Chance"
        lq.register(lq.PluginSpec("embedder", name, "Mine.", target=target, accepts=(), **fields))


def _load(name):
    lq.load_embedder(name, device="cpu")


def _compare(name):
    store = {"store": "never-written", "progress": False}
    lq.compare(name, ["bf16_baseline"], ["query_latency"], executor="local(device=cpu)", **store)


@pytest.mark.parametrize("run", [_load, _compare])
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mine", UnsupportedError, "mine needs a GPU"),
        ("far", MissingDependencyError, "embedder 'far' needs no-such-package"),
        ("bf16_baseline", LlmquantError, "is the name of a quantizer"),
    ],
)
def test_a_wrong_embedder_is_refused_alike(run, name, error, message, tmp_path, monkeypatch):
    """What its options refuse and what it lacks is found before anything is loaded or stored, in both ways."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(name)
    assert not (tmp_path / "never-written").exists()


@pytest.mark.parametrize("run", [_load, _compare])
def test_a_width_that_vectors_cannot_be_cut_to_is_refused_alike(run, monkeypatch):
    """Cutting an embedder without Matryoshka training would give other vectors than its own."""
    monkeypatch.setattr(Options, "check", lambda *_: None)
    with pytest.raises(OptionError, match="cannot be cut to 7 dimensions"):
        run("mine(dim=7)")


@pytest.mark.parametrize(
    ("items", "role", "message"),
    [
        ("a pump", "document", "items is str, not a list"),
        (b"a pump", "document", "items is bytes, not a list"),
        (lq.Item("a pump"), "document", "items is Item, not a list"),
        (["a pump", b"a page"], "document", "item 1 is bytes, not a text or an Item"),
        (["a pump"], "queries", "role is 'queries'"),
    ],
)
def test_what_cannot_be_encoded_is_named(items, role, message):
    """A text without a list would be encoded letter by letter."""
    with pytest.raises(ItemError, match=message):
        lq.load_embedder("random", device="cpu").encode(items, role)


def test_objects_that_a_plugin_sees_print_shortly(tiny_model):
    """A notebook shows them in a few lines: without weights, configuration, samples, pictures or numbers."""
    embedder = lq.load_embedder("random(width=8)", device="cpu")
    model = lq.load(tiny_model, device="cpu")
    samples = [lq.Sample(str(n), str(n), {"loss": float(n)}) for n in range(1000)]
    shown = [
        embedder,
        embedder.encode(["a pump", "a valve"]),
        embedder.info,
        model,
        model.info,
        lq.Item(image=bytes(10_000)),
        lq.Prepared(3, np.zeros(1000)),
        lq.Result.from_samples("texts", samples, "loss", higher_is_better=False),
    ]
    assert {type(each).__name__: len(repr(each)) for each in shown if len(repr(each)) > 1500} == {}
    assert repr(shown[1]) == "Embeddings(2 items, 2 vectors of 8 float32)"
