"""With and without AVX512-BF16, 4-bit layers are the same, of the predicted size and the requested compute dtype."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmquant.models.info import inspect_model
from llmquant.quantizers.bitsandbytes.options import Bnb4bitOptions, computes_in
from llmquant.study.experiment import ModelRequest
from quantizing import force_packing, load_as, logits, made_up, write_untied

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs llmquant[local]")
needs_the_kernel = pytest.mark.skipif(
    not bitsandbytes.functional.has_avx512bf16(),
    reason="bitsandbytes.functional.has_avx512bf16() is False: its packed kernel does not run here",
)
OPTIONS = {
    "nf4": Bnb4bitOptions(),
    "no_double": Bnb4bitOptions(double_quant=False),
    "bfloat16": Bnb4bitOptions(compute_dtype="bfloat16"),
    "float16": Bnb4bitOptions(compute_dtype="float16"),
    "float32": Bnb4bitOptions(compute_dtype="float32"),
}
# Of the untied model's 14 layers those 160 wide do not fit; of the mixture's 8 the gate of 1 x 64.
FITTING = {"tied": 14, "untied": 2, "mixture": 7, "conv1d": 4}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Return models whose layers all fit the packed kernel, or some of whose do not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, Qwen2MoeConfig

    folder = tmp_path_factory.mktemp("packed")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "num_experts": 4}
    conv1d = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    configs = {"mixture": Qwen2MoeConfig(**sizes, **experts), "conv1d": GPT2Config(**conv1d)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, config in configs.items():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return {
        "tied": tiny_model,
        "untied": write_untied(folder / "untied", tiny_model),
        **{name: folder / name for name in configs},
    }


@pytest.fixture
def load(folders, context, monkeypatch):
    """Return a function that loads a model as a job does on a CPU with or without AVX512-BF16."""
    from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit

    def run(name, options, *, packs):
        force_packing(monkeypatch, packs=packs)
        return load_as(Bnb4bit, options, folders[name], context())

    return run


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("options", ["nf4", "no_double"])
@pytest.mark.parametrize("name", FITTING)
def test_predicted_bytes_are_those_held(load, name, options, packs):
    """To the byte, whether the layers are repacked, cannot be, or are on a CPU where none is."""
    from llmquant.loading.memory import weight_bytes

    model = load(name, OPTIONS[options], packs=packs)
    assert weight_bytes(model.module).total == OPTIONS[options].weight_bytes(model.info, "cpu")


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("options", ["float16", "float32"])
def test_predicted_bytes_are_those_held_where_the_kernel_is_left_out(load, options, packs):
    """A compute type that the packed kernel ignores leaves all layers as they are, and their biases take it."""
    from llmquant.loading.memory import weight_bytes

    model = load("untied", OPTIONS[options], packs=packs)
    assert weight_bytes(model.module).total == OPTIONS[options].weight_bytes(model.info, "cpu")


@pytest.mark.parametrize("options", [OPTIONS["nf4"], OPTIONS["float32"]])
@pytest.mark.parametrize("name", FITTING)
def test_a_forward_pass_changes_nothing(load, name, options):
    """What is counted and read after loading holds for everything that is measured later, on this CPU."""
    from llmquant.loading.memory import weight_bytes
    from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit

    model = load(name, options, packs=bitsandbytes.functional.has_avx512bf16())
    before = weight_bytes(model.module)
    logits(model.module)
    assert weight_bytes(model.module) == before
    assert Bnb4bit(options).applied(model.module) == model.applied


@pytest.mark.parametrize("name", FITTING)
def test_both_kinds_of_cpu_quantize_the_same_layers(load, name):
    """Those that are known before, and none is left out or refused for its shape."""
    with_kernel, without = (load(name, Bnb4bitOptions(), packs=packs) for packs in (True, False))
    assert with_kernel.applied.layers_left == without.applied.layers_left
    assert with_kernel.applied.layers_quantized == without.applied.layers_quantized
    assert without.applied.layers_quantized == len(without.info.linear_layers())


@pytest.mark.parametrize("name", FITTING)
def test_how_many_layers_are_repacked_is_said(load, name):
    """With the scales' new type; nothing of it on other CPUs."""
    model = load(name, Bnb4bitOptions(), packs=True)
    total = model.applied.layers_quantized
    assert f"for AVX512-BF16 {FITTING[name]} of {total} layers are repacked" in model.applied.note
    assert "AVX512" not in load(name, Bnb4bitOptions(), packs=False).applied.note


@pytest.mark.parametrize("double_quant", [True, False])
def test_double_quantization_is_told_apart_once_repacked(load, double_quant):
    """Repacking expands doubly quantized scales; what they were is read all the same."""
    options = Bnb4bitOptions(double_quant=double_quant)
    assert load("tied", options, packs=True).applied.double_quantization == double_quant


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_compute_type_that_is_asked_for_is_used(load, dtype, packs):
    """Also where bitsandbytes' kernel for the CPU would compute in bfloat16 whatever was asked."""
    model = load("tied", Bnb4bitOptions(compute_dtype=dtype), packs=packs)
    assert model.applied.compute_dtype == dtype


@pytest.mark.parametrize(("packs", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_left_to_itself_a_cpu_computes_in_what_suits_it(load, packs, dtype):
    """In bfloat16 where there is a kernel for it, else in float32; the run says which."""
    assert load("untied", Bnb4bitOptions(), packs=packs).applied.compute_dtype == dtype


@needs_the_kernel
@pytest.mark.parametrize("name", FITTING)
def test_the_packed_kernel_computes_the_same(load, name):
    """Up to the rounding of scales to bfloat16, with layers that do not fit beside those that do."""
    options = Bnb4bitOptions(compute_dtype="bfloat16")
    packed, plain = (logits(load(name, options, packs=packs).module) for packs in (True, False))
    assert (packed - plain).norm() / plain.norm() < 0.03


@pytest.mark.parametrize("shape", [(32, 32), (1, 64), (33, 64), (64, 96)])
def test_no_shape_is_refused_on_a_cpu_with_the_kernel(monkeypatch, shape):
    """A plan is the same for both kinds of CPU; only the bytes differ, and for such shapes not even they."""
    sizes = []
    for packs in (True, False):
        force_packing(monkeypatch, packs=packs)
        Bnb4bitOptions().check(made_up(*shape), "cpu")
        sizes.append(Bnb4bitOptions().weight_bytes(made_up(*shape), "cpu"))
    assert sizes[0] == sizes[1]


def test_a_gpu_repacks_nothing(monkeypatch):
    """The prediction for CUDA does not depend on the CPU that plans it."""
    sizes = []
    for packs in (True, False):
        force_packing(monkeypatch, packs=packs)
        sizes.append(Bnb4bitOptions().weight_bytes(made_up(64, 64), "cuda"))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("options", ["nf4", "no_double", "bfloat16"])
def test_on_a_gpu_it_computes_as_the_baseline_does(options):
    """In bfloat16, so that nothing but the quantization differs from bf16_baseline."""
    assert computes_in(OPTIONS[options], "cuda", packs=False) == "bfloat16"


@pytest.fixture
def save(folders, context, monkeypatch, tmp_path):
    """Return a function that writes a 4-bit checkpoint of the untied model as `llmquant quantize` does."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit

    def run(options, *, packs) -> Path:
        force_packing(monkeypatch, packs=packs)
        ctx = context()
        info = inspect_model(ModelRequest(str(folders["untied"])), ctx.cache)
        model = load_causal_lm(folders["untied"], info, Bnb4bit(options), options, ctx, to_save=True)
        model.module.save_pretrained(tmp_path / f"saved-{packs}")
        model.tokenizer.save_pretrained(tmp_path / f"saved-{packs}")
        return tmp_path / f"saved-{packs}"

    return run


@pytest.mark.parametrize("options", ["bfloat16", "float32"])
def test_both_kinds_of_cpu_write_the_same_checkpoint(save, options):
    """Byte for byte: nothing is repacked and unpacked again on the way, which would round the scales."""
    files = [save(OPTIONS[options], packs=packs) / "model.safetensors" for packs in (True, False)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_checkpoint_that_bitsandbytes_saved_is_as_large_as_predicted(save, folders, context, dtype, packs):
    """Somebody else's 4-bit checkpoint is repacked like ours, and layers that do not fit are kept from it."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.loading.memory import weight_bytes
    from llmquant.quantizers.prequantized.options import Checkpoint, PrequantizedOptions
    from llmquant.quantizers.prequantized.quantizer import Prequantized

    saved, ctx = save(OPTIONS[dtype], packs=packs), context()
    info = inspect_model(ModelRequest(str(folders["untied"])), ctx.cache)
    options = PrequantizedOptions(Checkpoint.read(saved))
    model = load_causal_lm(saved, info, Prequantized(options), options, ctx)
    assert ("2 of 14 layers are repacked" in model.applied.note) == packs
    assert model.applied.compute_dtype == ("bfloat16" if packs else dtype)
    assert weight_bytes(model.module).total == options.weight_bytes(info, "cpu")


def test_the_tests_can_switch_it_off_in_every_process():
    """With the folder of the switch on its path, a process's bitsandbytes finds no AVX512-BF16 to ask for."""
    (library,) = Path(bitsandbytes.__file__).parent.glob("libbitsandbytes_cpu.*")
    switch = Path(__file__).parent / "no_packed_4bit"
    code = f"import ctypes; print(hasattr(ctypes.CDLL({str(library)!r}), 'has_avx512bf16_cpu'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": str(switch)}, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
