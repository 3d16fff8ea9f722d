"""A quantizer that is one function: applied to every linear layer, counted, read back, and saved where that works."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import llmquant as lq
from llmquant.errors import NotHonouredError, OptionError, PluginError, RequestError, UnsupportedError
from llmquant.plugins.registry import registry


@dataclass(frozen=True)
class Options(lq.QuantizerOptions):
    """What a test quantizer does."""

    how: str = "codes"


class Int8(torch.nn.Module):
    """Codes of 8 bits in one dimension, and a scale per row."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (weight / scale).round().to(torch.int8).flatten())
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        self.bias = layer.bias

    def forward(self, inputs):
        weight = self.codes.reshape(len(self.scale), -1).to(inputs.dtype) * self.scale
        return torch.nn.functional.linear(inputs, weight, self.bias)


class Replacing(lq.ReplacesLinear):
    """Does what the option says."""

    def replace(self, layer):
        """Return a module of codes, a layer of other weights, the layer as it was, or nothing."""
        if self.options.how == "codes":
            return Int8(layer)
        if self.options.how == "nothing":
            return layer.weight.mul_(2)
        if self.options.how == "halves" or (self.options.how == "narrow" and layer.in_features < 100):
            layer.weight.mul_(0.5)
        return layer


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    names = {"options": f"{__name__}:Options", "target": f"{__name__}:Replacing"}
    lq.register(lq.PluginSpec("quantizer", "swap", "Replaces.", accepts=("causal_lm", "embedder"), **names))


def test_new_layers_are_counted_by_what_they_store(tiny_model):
    """14 layers of 8-bit codes with a 16-bit scale per row; the head stays."""
    model = lq.load(tiny_model, "swap", device="cpu")
    applied = model.applied
    assert (applied.method, applied.code, applied.layers_quantized) == ("replacing", "int8", 14)
    assert applied.layers_left == ("lm_head",)
    assert 8 < applied.bits < 8.5
    weights = sum(p.numel() for n, p in lq.load(tiny_model, device="cpu").module.named_parameters() if "proj" in n)
    assert applied.dtypes["int8"] == weights
    assert "simulated" not in applied.note


def test_the_model_computes_with_the_new_layers(tiny_model):
    """8 bits move its logits a little, and not at all means that nothing was replaced."""
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        plain = lq.load(tiny_model, device="cpu").module(ids).logits
        coded = lq.load(tiny_model, "swap", device="cpu").module(ids).logits
    assert 0 < (plain - coded).abs().mean() < 0.1 * plain.std()


def test_other_weights_in_the_same_layers_are_a_simulation(tiny_model):
    """Their bits are those that are stored, and the note says so."""
    applied = lq.load(tiny_model, "swap(halves)", device="cpu").applied
    assert (applied.code, applied.bits, applied.layers_quantized) == ("bfloat16", 16, 14)
    assert applied.note == "simulated: the quantized weights are stored as bfloat16"


def test_layers_that_did_not_change_are_named(tiny_model):
    """Only what `replace` changed counts as quantized."""
    applied = lq.load(tiny_model, "swap(narrow)", device="cpu").applied
    assert applied.layers_quantized == 12
    assert applied.layers_left == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head")


def test_a_function_that_changes_nothing_is_an_error(tiny_model):
    """It would be the baseline under another name."""
    with pytest.raises(NotHonouredError, match="quantized none of 15"):
        lq.load(tiny_model, "swap(same)", device="cpu")


def test_a_function_that_returns_no_module_is_named(tiny_model):
    """Returning the weights instead of the layer is an easy mistake."""
    with pytest.raises(PluginError, match=r"replace returned Parameter for model\.layers\.0"):
        lq.load(tiny_model, "swap(nothing)", device="cpu")


def test_a_quantized_checkpoint_is_refused(tiny_model, tmp_path):
    """Its layers hold codes, and quantizing them again would compare nothing real."""
    lq.quantize(tiny_model, "bnb_4bit_nf4", tmp_path / "nf4", device="cpu")
    with pytest.raises(UnsupportedError, match="is quantized already"):
        lq.load(tmp_path / "nf4", "swap", device="cpu")


def test_a_layer_in_two_places_is_replaced_in_both():
    """And counted once."""
    shared = torch.nn.Linear(4, 4, bias=False)
    module = torch.nn.ModuleDict({"a": shared, "b": shared, "c": torch.nn.Linear(4, 4)})
    quantizer = Replacing(Options())
    quantizer.after_load(module, to_save=False)
    assert module["a"] is module["b"]
    assert quantizer.applied(module).layers_quantized == 2


def test_the_layers_themselves_know_that_they_were_replaced():
    """A quantizer keeps nothing: another object of the class reads the same back."""
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
    quantizer = Replacing(Options())
    quantizer.after_load(module, to_save=False)
    assert vars(quantizer) == {"options": Options()}
    assert Replacing(Options()).applied(module) == quantizer.applied(module)


def test_a_simulation_can_be_saved_and_new_layers_cannot(tiny_model, tmp_path):
    """Plain transformers has to load what is written."""
    from transformers import AutoModelForCausalLM

    lq.quantize(tiny_model, "swap(halves)", tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    loaded = lq.load(tiny_model, "swap(halves)", device="cpu").module
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
    with pytest.raises(UnsupportedError, match=r"puts Int8 in place of model\.layers\.0"):
        lq.quantize(tiny_model, "swap", tmp_path / "other", device="cpu")


def test_an_embedder_can_be_quantized_by_it(tmp_path):
    """Loading, reading back and evaluating in this process are the same for embedders."""
    from tiny_sentence_transformer import save_tiny_sentence_transformer

    folder = save_tiny_sentence_transformer(tmp_path / "embedder")
    loaded = lq.load_embedder(f"sentence_transformers({folder})", "swap", device="cpu")
    assert loaded.applied.code == "int8"
    (result,) = lq.evaluate(loaded, "query_latency(documents=50, repeats=2, warmup=1)")
    assert all(measurement.value > 0 for measurement in result.measurements)


def test_an_evaluator_runs_in_this_process_as_in_a_worker(tiny_model, tmp_path):
    """Equal values and samples."""
    text = tmp_path / "text.txt"
    text.write_text("The farmer sold nine sacks of barley on Monday. " * 40)
    call = f"perplexity({text}, window=64)"
    options = {"executor": "local(device=cpu)", "store": tmp_path / "store", "progress": False}
    compared = lq.compare(tiny_model, ["fp32_baseline"], [call], **options)
    (row,) = [row for row in compared.rows() if row.metric == "perplexity"]
    (result,) = lq.evaluate(lq.load(tiny_model, "fp32_baseline", device="cpu"), call)
    (value,) = [found.value for found in result.measurements if found.metric == "perplexity"]
    assert value == pytest.approx(row.value, rel=1e-6)


def test_a_limit_is_the_number_of_documents(tiny_model, tmp_path):
    """It reaches evaluators that use the study's documents."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "Number {n}?", "answer": "{n}"}}\n' for n in range(6)))
    task = tmp_path / "task.yaml"
    task.write_text(
        "task: numbers\ndataset_path: json\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list:\n  - metric: perplexity\n"
    )
    (result,) = lq.evaluate(lq.load(tiny_model, device="cpu"), f"lm_eval({task}, data={rows})", limit=4)
    assert len(result.samples) == 4


def test_what_cannot_be_evaluated_is_refused(tiny_model):
    """As in a study: a wrong limit, an evaluator of embedders, and one that needs the baseline."""
    model = lq.load(tiny_model, device="cpu")
    with pytest.raises(OptionError, match="limit must be at least 1"):
        lq.evaluate(model, "lm_eval(coqa)", limit=0)
    with pytest.raises(UnsupportedError, match="'query_latency'"):
        lq.evaluate(model, "query_latency")
    with pytest.raises(RequestError, match="compares with a baseline"):
        lq.evaluate(model, "drift(NanoNFCorpusRetrieval)")
