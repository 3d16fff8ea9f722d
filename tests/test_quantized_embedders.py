"""On-the-fly quantizers on embedders: the loaded model is as requested, as large as predicted, and still works."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmquant.errors import ModelError
from llmquant.loading.embedder import load_embedder
from llmquant.loading.memory import weight_bytes
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from tiny_gemma3 import write_gemma3
from tiny_sentence_transformer import save_tiny_sentence_transformer

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
    ],
)
PRESETS = ("bf16_baseline", "bnb_8bit", "bnb_4bit_nf4", "torchao_int8", "quanto_int8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a Gemma 3 and a BERT."""
    folder = tmp_path_factory.mktemp("models")
    bert = save_tiny_sentence_transformer(folder / "bert")
    return {"gemma": f"bigemma3({write_gemma3(folder / 'gemma')})", "bert": f"sentence_transformers({bert})"}


def load(name, preset, ctx):
    info = inspect_subject(ModelRequest(name), registry(), ctx.cache)
    chosen = registry().choose("quantizer", Call(preset))
    embedder = registry().construct(registry().restore("embedder", info.embedder))
    return load_embedder(info, embedder, registry().construct(chosen), chosen.use, chosen.options, ctx), chosen


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", ["gemma", "bert"])
def test_it_is_as_large_as_predicted_and_finds_the_same(models, context, model, preset, device):
    """Bytes are those that were predicted, and vectors point where the unquantized ones do."""
    ctx = context(device)
    loaded, chosen = load(models[model], preset, ctx)
    vectors = loaded.encode(["an invoice", "the weather in the mountains"], "query").values
    predicted = chosen.options.weight_bytes(loaded.info, device)
    # BERT counts its positions in buffers, which shows in a tiny model only.
    assert weight_bytes(loaded.module).total == pytest.approx(predicted, rel=0.01, abs=2048)
    plain = load(models[model], "fp32_baseline", ctx)[0].encode(["an invoice", "the weather in the mountains"], "query")
    assert ((vectors * plain.values).sum(axis=1) > 0.5).all()
    assert loaded.applied.layers_quantized > 0 or preset == "bf16_baseline"


def test_quantizers_do_not_share_cached_vectors(models, context):
    """What one quantizer encoded is never taken for another's."""
    ctx = context("cpu")
    prints = {load(models["gemma"], preset, ctx)[0].fingerprint for preset in PRESETS[:3]}
    assert len(prints) == 3


def test_another_version_of_the_library_does_not_share_cached_vectors(models, context, monkeypatch):
    """A sentence-transformers model is pooled and prompted by its library, which may change."""
    from llmquant.loading import embedder as loading

    first = {name: load(models[name], "fp32_baseline", context())[0].fingerprint for name in ("gemma", "bert")}
    plain = loading.installed_version
    later = lambda package: "99.0" if package == "sentence-transformers" else plain(package)  # noqa: E731
    monkeypatch.setattr(loading, "installed_version", later)
    second = {name: load(models[name], "fp32_baseline", context())[0].fingerprint for name in first}
    assert first["bert"] != second["bert"]
    assert first["gemma"] == second["gemma"]


def test_a_checkpoint_with_a_tensor_missing_is_refused(context, tmp_path):
    """Weights that are not in the files are an error that names them, never random numbers."""
    from safetensors.torch import load_file, save_file

    folder = write_gemma3(tmp_path / "gemma")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    gone = next(name for name in tensors if "layers.0" in name and "q_proj" in name)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*q_proj"):
        load(f"bigemma3({folder})", "bf16_baseline", context("cpu"))


def test_vectors_are_of_unit_length(models, context):
    """A cosine is a product only of unit vectors."""
    for model in models.values():
        values = load(model, "bf16_baseline", context("cpu"))[0].encode(["a", "the river is brown"]).values
        assert np.linalg.norm(values, axis=1) == pytest.approx([1, 1], abs=1e-3)
