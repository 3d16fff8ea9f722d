"""What a model's name stands for: a causal language model, or an embedder with its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmquant.errors import ModelError, OptionError, RequestError, UnknownNameError
from llmquant.planning.lookup import _embedder, inspect_subject, restore_subject
from llmquant.planning.resolve import resolve
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest, ModelUse
from llmquant.study.study import Study
from tiny_gemma3 import write_gemma3
from tiny_sentence_transformer import save_tiny_sentence_transformer


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return write_gemma3(tmp_path_factory.mktemp("gemma") / "tiny")


def inspect(source, tmp_path):
    return inspect_subject(ModelRequest(str(source)), registry(), Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("bigemma3-4b-embedding", "bigemma3"),
        ("bigemma3(dim=1536)", "bigemma3"),
        ("vidore/colqwen2.5-v0.2", "colpali_engine"),
        ("vidore/colpali-v1.3@main", "colpali_engine"),
        ("colsmol", "colpali_engine"),
        ("google/siglip-so400m-patch14-384", "clip"),
        ("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", "gme"),
        ("Cognitive-Lab/NetraEmbed", "bigemma3"),
        ("Cognitive-Lab/ColNetraEmbed", "colgemma3"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence_transformers"),
        ("random", "random"),
    ],
)
def test_names_of_embedders_are_known(name, plugin):
    """Embedders' names, presets and the Hub ids of known families need no further word."""
    assert _embedder(name, registry()).plugin.spec.name == plugin


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "gpt2", "google/gemma-3-4b-it", "vidore/other", "./x"])
def test_all_else_is_a_causal_language_model(name):
    """A Hub id that no embedder claims is a language model."""
    assert _embedder(name, registry()) is None


def test_a_known_hub_id_is_its_own_label():
    """What was asked for by its Hub id is called by it, and keeps the revision."""
    chosen = _embedder("vidore/colqwen2.5-v0.2@abc", registry())
    assert chosen.use.label == "vidore/colqwen2.5-v0.2@abc"
    assert chosen.options.checkpoint == "vidore/colqwen2.5-v0.2@abc"


def test_options_of_an_unknown_embedder_are_refused(tmp_path):
    """A mistyped embedder with options is not a Hub id; the error suggests the nearest name."""
    with pytest.raises(UnknownNameError, match="bigema3") as caught:
        inspect("bigema3(dim=768)", tmp_path)
    assert "bigemma3" in caught.value.hint


def test_a_folder_of_sentence_transformers_is_an_embedder(tmp_path):
    """``modules.json`` tells a folder that sentence-transformers saved."""
    info = inspect(save_tiny_sentence_transformer(tmp_path / "st"), tmp_path)
    assert info.embedder.plugin == "llmquant/sentence_transformers"
    assert info.embeds.modalities == ("text",)


def test_the_digest_follows_what_changes_vectors(gemma, tmp_path):
    """Pooling makes another model and other cached vectors; a width makes another model of the same vectors."""
    plain, mean, cut = (inspect(f"bigemma3({gemma}{more})", tmp_path) for more in ("", ", pooling=mean", ", dim=64"))
    assert len({plain.digest, mean.digest, cut.digest}) == 3
    assert plain.encoder_digest == cut.encoder_digest != mean.encoder_digest
    assert cut.embeds.dim == 64


def test_the_digest_is_of_content_not_of_paths(gemma, tmp_path):
    """The same checkpoint elsewhere is the same model."""
    other = write_gemma3(tmp_path / "copy")
    assert inspect(f"bigemma3({gemma})", tmp_path).digest == inspect(f"bigemma3({other})", tmp_path).digest


def test_a_worker_restores_what_was_planned(gemma, tmp_path):
    """Through JSON and back the same embedder is found; a checkpoint that changed meanwhile is refused."""
    copy = write_gemma3(tmp_path / "copy")
    planned = inspect(f"bigemma3({copy})", tmp_path)
    use = ModelUse.from_json(json.loads(json.dumps(planned.use().to_json())))
    assert restore_subject(use, registry(), Cache(tmp_path / "cache")).digest == planned.digest
    config = Path(copy) / "config.json"
    config.write_text(config.read_text().replace('"vocab_size"', '"vocabulary"'))
    with pytest.raises(ModelError, match="has changed since"):
        restore_subject(use, registry(), Cache(tmp_path / "cache"))


def test_a_language_model_is_no_bigemma3(tiny_model, tmp_path):
    """A checkpoint of another kind is refused before anything is loaded."""
    with pytest.raises(RequestError):
        inspect(f"bigemma3({tiny_model})", tmp_path)


def test_a_width_the_model_lacks_is_refused(gemma, tmp_path):
    """A dimension that the checkpoint does not offer is refused with those that it does."""
    with pytest.raises(OptionError, match="1536"):
        inspect(f"bigemma3({gemma}, dim=1536)", tmp_path)


def test_chance_stands_beside_quantized_models(gemma, tmp_path):
    """An embedder without weights takes part with its baseline alone, and refuses no study."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.txt").write_text("a page")
    (tmp_path / "q.jsonl").write_text('{"query": "a", "relevant": ["a.txt"]}')
    evaluator = f"retrieval({tmp_path / 'pages'}, queries={tmp_path / 'q.jsonl'})"
    study = Study.of([f"bigemma3({gemma})", "random"], ["bf16_baseline", "bnb_4bit_nf4"], [evaluator])
    with open_executor("local(device=cpu)") as executor:
        record = resolve(study, registry(), Cache(tmp_path / "cache"), executor).record
    found = [(e.variant.model.name.partition("(")[0], e.variant.quantizer.label) for e in record.experiments]
    assert found == [("bigemma3", "bf16_baseline"), ("bigemma3", "bnb_4bit_nf4"), ("random", "bf16_baseline")]
