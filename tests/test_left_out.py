"""What was asked for by name takes part, is refused, or is named in a note."""

from __future__ import annotations

import shutil

import pytest

from llmquant.errors import OptionError, UnsupportedError
from llmquant.planning.resolve import resolve
from llmquant.plugins.registry import registry
from llmquant.results.preview import with_all_presets
from llmquant.storage.cache import Cache
from llmquant.study.study import Study
from tiny_sentence_transformer import save_tiny_sentence_transformer


class _Here:
    """An executor that is asked what it is, and runs nothing."""

    name, outlives, installs, hardware, device = "local", False, True, "cpu", "cpu"
    slots, threads, notices = 1, None, ()


@pytest.fixture
def planned(tmp_path):
    """Plan a study of what is written; return its record."""
    return lambda *asked, **options: (
        resolve(Study.of(*asked, **options), registry(), Cache(tmp_path / "cache"), _Here()).record
    )


def _labels(record, model: str) -> list[str]:
    found = [e.variant for e in record.experiments if e.variant.model.name == model]
    return list(dict.fromkeys(variant.quantizer.label for variant in found))


def test_quantizers_that_a_model_without_weights_cannot_have_are_named(planned):
    """Random vectors have no weights to quantize: the variant that was asked for is left out with a note."""
    record = planned(["random"], ["bf16_baseline", "bnb_4bit_nf4"], ["query_latency"])
    assert _labels(record, "random") == ["bf16_baseline"]
    assert "random: bnb_4bit_nf4 left out, because the model has no weights to quantize" in record.notes


def test_a_baseline_that_a_model_cannot_have_is_refused(planned):
    """A model without weights beside a quantized baseline would have no variant at all."""
    with pytest.raises(UnsupportedError, match="random has no linear layers"):
        planned(["random"], ["bnb_4bit_nf4", "bnb_8bit"], ["query_latency"], baseline="bnb_8bit")


def test_two_names_of_one_variant_are_compared_once_with_a_note(planned, tiny_model):
    """A call that means what a preset means is named beside it."""
    names = ["bf16_baseline", "bnb_4bit_nf4", "bnb_4bit(quant_type=nf4)", "bnb_4bit_nf4"]
    record = planned(str(tiny_model), names, ["memory"])
    assert len(_labels(record, tiny_model.name)) == 2
    assert record.notes == ("bnb_4bit(quant_type=nf4) means the same as bnb_4bit_nf4; the variant is compared once",)


def test_variants_of_files_with_one_name_are_told_apart(planned, tiny_model, tmp_path):
    """Labels have names of files without their folders, unless two variants would have the same label."""
    files = []
    for folder, text in (("one", "First text. " * 400), ("two", "Second text. " * 400)):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "text.txt")
        files[-1].write_text(text)
    record = planned(str(tiny_model), ["bf16_baseline"], [f'perplexity("{file}", window=64)' for file in files])
    first, second = dict.fromkeys(experiment.evaluator.label for experiment in record.experiments)
    assert first == "perplexity(text.txt, window=64)"
    assert str(files[1]) in second


def test_two_folders_of_one_content_are_compared_once_with_a_note(planned, tiny_model, tmp_path):
    """A copy of a model does not disappear unsaid."""
    shutil.copytree(tiny_model, tmp_path / "copy")
    record = planned([str(tiny_model), str(tmp_path / "copy")], ["bf16_baseline"], ["memory"])
    assert len(record.experiments) == 1
    assert record.notes == (f"{tmp_path / 'copy'} has the same content as {tiny_model}; the model is compared once",)


def test_forms_of_vectors_that_nothing_measures_are_named(planned):
    """Codecs make no difference to an evaluator that searches nothing, which a note says."""
    record = planned(["random"], ["bf16_baseline"], ["memory"], vectors={"codecs": ["float32", "int8"]})
    assert len(record.experiments) == 1
    assert any("codecs" in note and "ignored" in note for note in record.notes)


def test_a_quantizer_of_the_wrong_kind_of_model_is_refused(planned, tmp_path):
    """A quantizer for causal language models is refused for an embedder, by name."""
    folder = save_tiny_sentence_transformer(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="supports a causal LM"):
        planned([str(folder)], ["bf16_baseline", "gptq_4bit_g128"], ["query_latency"])


def test_a_width_that_an_embedder_does_not_offer_is_refused(planned, tmp_path):
    """An embedder that cannot be cut is refused with what it offers."""
    folder = save_tiny_sentence_transformer(tmp_path / "model")
    with pytest.raises(OptionError, match="cannot be cut to 7 dimensions"):
        planned([str(folder)], ["bf16_baseline"], ["query_latency"], vectors={"dims": [32, 7]})


def test_every_preset_of_an_embedder_is_one_that_it_can_have(tmp_path, planned):
    """With --all an embedder gets the presets that go on embedders, and the plan accepts them."""
    folder = save_tiny_sentence_transformer(tmp_path / "model")
    study, notes = with_all_presets(Study.of([str(folder)], (), ["query_latency"]), executor=_Here())
    names = [call.name for call in study.quantizers]
    assert "bnb_4bit_nf4" in names
    assert "gptq_4bit_g128" not in names
    assert any("gptq_4bit_g128" in note and "not for this kind of model" in note for note in notes)
    planned([str(folder)], names, ["query_latency"])


@pytest.mark.parametrize("dims", [[8], [64], [768, 256], [2560, 1536, 768]])
def test_random_vectors_take_part_in_any_grid(planned, dims):
    """Random vectors have every width of a study's grid; the widest is what is drawn."""
    record = planned(["random"], ["bf16_baseline"], ["query_latency"], vectors={"dims": dims})
    assert {e.variant.vectors.dim for e in record.experiments} == set(dims)
    widths = {e.variant.model.embedder.options["width"] for e in record.experiments}
    assert widths == {max(64, *dims)}


def test_random_vectors_without_a_grid_are_what_they_were(planned):
    """Without widths nothing is widened, and the run has the id that it always had."""
    record = planned(["random"], ["bf16_baseline"], ["query_latency"])
    assert record.experiments[0].variant.model.embedder.options["width"] == 64


def test_embedders_of_text_alone_are_measured_on_texts(planned, tmp_path):
    """Without evaluators, page images are searched only if every embedder reads images."""
    save_tiny_sentence_transformer(tmp_path / "minilm")
    for models, benchmark in ((["random"], "ViDoRe"), (["random", str(tmp_path / "minilm")], "NanoBEIR")):
        assert all(benchmark in found for found in planned(models, ["bf16_baseline"]).benchmarks)
