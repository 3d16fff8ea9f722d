"""The quantizers do what their options say, take the memory that was predicted, and can be read back."""

from __future__ import annotations

import dataclasses

import pytest

from llmquant.builtin import QUANTIZERS
from llmquant.errors import NotHonouredError, OptionError, UnsupportedError
from llmquant.models.headers import TensorInfo
from llmquant.models.info import ModelInfo, inspect_model
from llmquant.quantizers.baseline.options import BaselineOptions
from llmquant.quantizers.bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from quantizing import EMPTY, stored_as_said

PRESETS = {
    "bf16_baseline": BaselineOptions("bfloat16"),
    "fp16_baseline": BaselineOptions("float16"),
    "fp32_baseline": BaselineOptions("float32"),
    "bnb_4bit_nf4": Bnb4bitOptions(),
    "bnb_4bit_fp4": Bnb4bitOptions("fp4"),
    "bnb_4bit_nf4_no_double": Bnb4bitOptions(double_quant=False),
    "bnb_4bit_fp4_no_double": Bnb4bitOptions("fp4", double_quant=False),
    "bnb_4bit_nf4_bf16": Bnb4bitOptions(compute_dtype="bfloat16"),
    "bnb_8bit": Bnb8bitOptions(),
}


@pytest.fixture
def load(tiny_model, context):
    """Return a function that loads a model, the tiny one unless told, under some options."""
    from llmquant.loading.causal_lm import load_causal_lm

    def run(options, folder=tiny_model):
        ctx = context()
        info = inspect_model(ModelRequest(str(folder)), ctx.cache)
        return load_causal_lm(folder, info, _heavy(options), options, ctx)

    return run


def _heavy(options):
    from llmquant.quantizers.baseline.quantizer import Baseline
    from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit, Bnb8bit

    return {BaselineOptions: Baseline, Bnb4bitOptions: Bnb4bit, Bnb8bitOptions: Bnb8bit}[type(options)](options)


def _step(model):
    import torch

    with torch.no_grad():
        return model.module(torch.arange(3, 20)[None]).logits


def test_the_presets_are_those_of_the_table():
    """Every preset that is declared here is tried here."""
    ours = [spec for spec in QUANTIZERS if spec.name in ("baseline", "bnb_4bit", "bnb_8bit")]
    assert {name for spec in ours for name in spec.presets or (spec.name,)} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_predicted_weight_bytes_are_those_held(load, preset):
    """The prediction from shapes is what the loaded model keeps, to the byte, on this CPU."""
    from llmquant.loading.memory import weight_bytes

    model = load(PRESETS[preset])
    _step(model)
    assert weight_bytes(model.module).total == PRESETS[preset].weight_bytes(model.info, "cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_applied_reads_the_same_after_a_forward_pass(load, preset):
    """Bitsandbytes moves scales about in the first pass; nobody who reads them notices."""
    model = load(PRESETS[preset])
    _step(model)
    assert _heavy(PRESETS[preset]).applied(model.module) == model.applied


@pytest.mark.parametrize("preset", PRESETS)
def test_elements_by_type_are_those_that_are_stored(load, preset):
    """Packed words and scales take what the weights hold."""
    model = load(PRESETS[preset])
    assert stored_as_said(model)


def test_double_quantization_is_told_apart(load):
    """The field that `get_memory_footprint` cannot see is read from the scales themselves."""
    assert load(Bnb4bitOptions(double_quant=True)).applied.double_quantization
    assert not load(Bnb4bitOptions(double_quant=False)).applied.double_quantization


def test_codes_are_told_apart(load):
    """NF4 and FP4 come from the quantization state."""
    assert [load(Bnb4bitOptions(code)).applied.code for code in ("nf4", "fp4")] == ["nf4", "fp4"]


def test_every_linear_layer_but_the_head_is_quantized(load):
    """The head is named as left alone."""
    model = load(Bnb4bitOptions())
    assert model.applied.layers_quantized == len(model.info.linear_layers()) == 14
    assert model.applied.layers_left == ("lm_head",)


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory):
    """Build models that are not plain Llamas: a mixture with a shared expert, Conv1D layers."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, Qwen2MoeConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "num_experts": 4}
    configs = {
        "mixture": Qwen2MoeConfig(**sizes, **experts, bos_token_id=0, eos_token_id=1),
        "conv1d": GPT2Config(
            vocab_size=64, n_embd=64, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
        ),
    }
    folder = tmp_path_factory.mktemp("odd")
    for name, config in configs.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("options", [Bnb4bitOptions(), Bnb8bitOptions()])
@pytest.mark.parametrize("name", ["mixture", "conv1d"])
def test_the_layers_that_will_be_quantized_are_known_before(odd_models, name, options, context):
    """From the header alone, for architectures whose layers have other names and kinds."""
    from transformers import AutoModelForCausalLM

    ctx = context()
    info = inspect_model(ModelRequest(str(odd_models / name)), ctx.cache)
    keywords = _heavy(options).load_kwargs(info, ctx)
    module = AutoModelForCausalLM.from_pretrained(odd_models / name, device_map={"": "cpu"}, **keywords)
    assert _heavy(options).applied(module).layers_quantized == len(info.linear_layers())


def test_experts_that_stay_as_they_are_are_said(odd_models, context):
    """A mixture in 4 bits is mostly not in 4 bits, and the note says so."""
    from transformers import AutoModelForCausalLM

    options, ctx = Bnb4bitOptions(), context()
    keywords = _heavy(options).load_kwargs(inspect_model(ModelRequest(str(odd_models / "mixture")), ctx.cache), ctx)
    module = AutoModelForCausalLM.from_pretrained(odd_models / "mixture", device_map={"": "cpu"}, **keywords)
    assert "experts" in _heavy(options).applied(module).note


def test_a_known_model_has_its_known_sizes():
    """Llama-3.2-1B takes 2357 MiB in 16 bits, about 980 in NF4, and 1023 without double quantization."""
    info = _llama_3_2_1b()
    assert info.parameters == 1_235_814_400
    presets = ("fp16_baseline", "bnb_4bit_nf4", "bnb_4bit_nf4_no_double")
    sizes = [PRESETS[name].weight_bytes(info, "cuda") / 2**20 for name in presets]
    assert sizes == pytest.approx([2357, 980, 1023], abs=1)


def _llama_3_2_1b():
    shapes = {"q_proj": (2048, 2048), "k_proj": (512, 2048), "v_proj": (512, 2048), "o_proj": (2048, 2048)}
    shapes |= {"gate_proj": (8192, 2048), "up_proj": (8192, 2048), "down_proj": (2048, 8192)}
    tensors = [TensorInfo("model.embed_tokens.weight", "bfloat16", (128256, 2048))]
    tensors += [
        TensorInfo(f"model.layers.{layer}.mlp.{name}.weight", "bfloat16", shape)
        for layer in range(16)
        for name, shape in shapes.items()
    ]
    norms = [f"model.layers.{layer}.{name}.weight" for layer in range(16) for name in ("input_norm", "post_norm")]
    tensors += [TensorInfo(name, "bfloat16", (2048,)) for name in [*norms, "model.norm.weight"]]
    config = {"tie_word_embeddings": True, "rope_theta": 500000.0, "num_attention_heads": 32, "head_dim": 64}
    return ModelInfo("llama", "sha256:0", (), "folder", None, None, None, config, tuple(tensors), (), 0)


def test_an_outlier_threshold_is_read_back(load):
    """The threshold is in the note, and is compared with the request."""
    model = load(Bnb8bitOptions(threshold=4.5))
    assert "4.5" in model.applied.note
    with pytest.raises(NotHonouredError, match="threshold"):
        _heavy(Bnb8bitOptions(threshold=6.0)).applied(model.module)


def test_a_negative_threshold_is_refused():
    """Before anything is loaded."""
    with pytest.raises(OptionError, match="threshold"):
        Bnb8bitOptions(threshold=-1.0)


def test_int8_warns_once_not_in_every_layer(load, caplog):
    """Bitsandbytes says in each layer of each pass that inputs are rounded; its line appears once at most."""
    model = load(Bnb8bitOptions())
    _step(model)
    _step(model)
    assert sum("cast" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("options", [Bnb4bitOptions(), Bnb8bitOptions()])
def test_a_device_that_bitsandbytes_is_not_run_on_is_refused(options, tiny_model, tmp_path):
    """With the nearest preset that works there."""
    info = inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path))
    with pytest.raises(UnsupportedError) as caught:
        options.check(info, "mps")
    assert "bf16_baseline" in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_quantized_checkpoint_is_refused(preset):
    """Neither a second quantization nor a baseline of one makes sense."""
    info = dataclasses.replace(_llama_3_2_1b(), config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    with pytest.raises(UnsupportedError, match="awq 4-bit"):
        PRESETS[preset].check(info, "cpu")


def test_a_model_without_linear_layers_is_refused():
    """Nothing to quantize is a refusal, not a result."""
    with pytest.raises(UnsupportedError, match="no linear layers"):
        Bnb4bitOptions().check(EMPTY, "cpu")
