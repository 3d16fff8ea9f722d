"""torchao's presets do what they say, take the memory that was predicted, and can be read back and saved."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from llmquant.errors import NotHonouredError, OptionError, UnsupportedError
from llmquant.quantizers.torchao.options import SCHEMES, TorchaoInt4Options, TorchaoOptions, check_capability
from quantizing import load_as, logits, made_up, write_untied

pytest.importorskip("torchao")

ON_CPU = {
    "torchao_int8": TorchaoOptions("int8"),
    "torchao_int8_float32": TorchaoOptions("int8", "float32"),
    "torchao_int8_dynamic": TorchaoOptions("int8_dynamic"),
    "torchao_float8": TorchaoOptions("float8"),
    "torchao_nvfp4": TorchaoOptions("nvfp4"),
    "torchao_int4_g32": TorchaoInt4Options(32),
}
GPU_ONLY = ("float8_dynamic", "nvfp4_dynamic", "mxfp4")


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Return the two models by name."""
    return {"tied": tiny_model, "untied": write_untied(tmp_path_factory.mktemp("untied"), tiny_model)}


@pytest.fixture
def load(folders, context):
    """Return a function that loads a model under some options."""

    def run(options, name="tied"):
        return load_as(_heavy(options), options, folders[name], context())

    return run


def _heavy(options):
    from llmquant.quantizers.torchao.quantizer import Torchao, TorchaoInt4

    return TorchaoInt4 if isinstance(options, TorchaoInt4Options) else Torchao


@pytest.mark.parametrize("preset", ON_CPU)
def test_quantized_layers_hold_the_weights_of_the_checkpoint(load, preset):
    """What a product with the unit matrix gives is the original, but for the rounding of the code."""
    import torch
    from safetensors.torch import load_file

    model = load(ON_CPU[preset])
    name = "model.layers.1.mlp.down_proj"
    original = load_file(model.path / "model.safetensors")[f"{name}.weight"]
    layer = model.module.get_submodule(name)
    with torch.no_grad():
        held = layer(torch.eye(original.shape[1], dtype=model.module.dtype)).float().t()
    # float8 has 3 binary digits, 4 bits fewer: on normal weights they lose 2.6 % and about 10 %.
    assert (held - original).norm() < (0.15 if model.applied.bits == 4 else 0.04) * original.norm()


@pytest.mark.parametrize("preset", [name for name in ON_CPU if "int4" not in name])
def test_a_saved_folder_gives_the_same_logits(load, preset, tmp_path):
    """Plain transformers reloads what was saved, without llmquant."""
    import torch
    from transformers import AutoModelForCausalLM

    model = load(ON_CPU[preset])
    model.module.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model.module))


def test_int4_rows_are_padded_on_cuda():
    """The prediction knows that a row of 576 weights takes 1,024 there, and one of 1,024 no more than here."""
    narrow, wide = made_up(64, 576), made_up(64, 1024)
    options = TorchaoInt4Options(64)
    assert options.weight_bytes(narrow, "cuda") == options.weight_bytes(wide, "cuda")
    assert options.weight_bytes(wide, "cuda") == options.weight_bytes(wide, "cpu")


def test_what_cannot_be_saved_is_said_before():
    """int4 packed for a CPU has no file format; for CUDA it has."""
    with pytest.raises(UnsupportedError, match="cannot save"):
        TorchaoInt4Options().check_save("cpu")
    TorchaoInt4Options().check_save("cuda")


def test_quantized_inputs_are_told_apart(load):
    """The same weights, computed in another type."""
    found = [load(TorchaoOptions(scheme)).applied.compute_dtype for scheme in ("int8", "int8_dynamic")]
    assert found == ["bfloat16", "int8"]


def test_a_group_size_is_read_from_the_weights(load, folders, context):
    """Loaded with another than was asked for, the mistake is found."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.quantizers.torchao.quantizer import TorchaoInt4

    info = load(TorchaoInt4Options(32)).info
    with pytest.raises(NotHonouredError, match="block_size 64, found 32"):
        load_causal_lm(folders["tied"], info, TorchaoInt4(TorchaoInt4Options(32)), TorchaoInt4Options(64), context())


def test_formats_for_gpus_are_read_right():
    """Weights in the formats that no CPU computes in say what they are."""
    import torch
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, QuantizeTensorToNVFP4Kwargs
    from torchao.quantization import Int4TilePackedTo4dTensor

    from llmquant.quantizers.torchao.quantizer import Torchao, TorchaoInt4

    weight = torch.randn(64, 576, dtype=torch.bfloat16)
    fp4 = torch.float4_e2m1fn_x2
    scales = torch.zeros(8, 64, 2, dtype=torch.bfloat16)
    weights = {
        TorchaoOptions("mxfp4"): MXTensor.to_mx(weight, fp4, 32, act_quant_kwargs=QuantizeTensorToMXKwargs()),
        TorchaoOptions("nvfp4_dynamic"): NVFP4Tensor.to_nvfp4(weight, act_quant_kwargs=QuantizeTensorToNVFP4Kwargs()),
        TorchaoInt4Options(128): Int4TilePackedTo4dTensor(
            torch.zeros(8, 8, 32, 4, dtype=torch.int32), scales, [1, 128], torch.Size([64, 576])
        ),
    }
    for options, quantized in weights.items():
        module = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
        module[0].weight = torch.nn.Parameter(quantized, requires_grad=False)
        heavy = TorchaoInt4 if isinstance(options, TorchaoInt4Options) else Torchao
        applied = heavy(options).applied(module)
        assert {name: getattr(applied, name) for name in options.requests()} == options.requests()
        assert ("padded to multiples of 1024" in applied.note) == (heavy is TorchaoInt4)


def test_a_model_that_is_not_quantized_is_not_called_so(folders):
    """Reading a plain model back is an error."""
    from transformers import AutoModelForCausalLM

    from llmquant.quantizers.torchao.quantizer import Torchao

    with pytest.raises(NotHonouredError, match="none of 15 linear layers"):
        Torchao(TorchaoOptions()).applied(AutoModelForCausalLM.from_pretrained(folders["tied"]))


@pytest.mark.parametrize("scheme", GPU_ONLY)
def test_formats_for_gpus_are_refused_on_a_cpu(scheme):
    """With the hardware they need and a preset that runs here."""
    with pytest.raises(UnsupportedError, match=r"B200(.|\n)*torchao_(float8|nvfp4)"):
        TorchaoOptions(scheme).check(made_up(64, 64), "cpu")


def test_the_formats_that_run_here_are_those_that_are_tried():
    """Every scheme that is declared is in one of the two lists."""
    here = {options.scheme for options in ON_CPU.values() if isinstance(options, TorchaoOptions)}
    assert here | set(GPU_ONLY) == set(SCHEMES)


def test_an_old_gpu_is_refused():
    """Naming what it has, what is needed, and machines that have it."""
    with pytest.raises(UnsupportedError, match=r"8\.9 .*L40S.*8\.0"):
        check_capability((8, 0), (8, 9), "float8_dynamic")
    check_capability((9, 0), (8, 9), "float8_dynamic")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="VNNI is of x86")
def test_a_cpu_that_multiplies_int8_wrongly_is_refused():
    """Without VNNI, PyTorch's int8 product overflows and says nothing; the preset does."""
    code = (
        "from llmquant.quantizers.torchao.quantizer import _check_int8_matmul\n"
        "try: _check_int8_matmul()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UnsupportedError")
    assert "VNNI" in done.stdout


@pytest.mark.parametrize(
    ("options", "shape", "told"),
    [
        (TorchaoInt4Options(128), (64, 64), r"up_proj(.|\n)*32, 64"),
        (TorchaoInt4Options(32), (40, 64), r"up_proj.*40 x 64.*16 x 1"),
        (TorchaoOptions("nvfp4"), (64, 40), r"up_proj.*64 x 40.*16 x 16"),
    ],
)
def test_widths_that_do_not_fit_are_refused(options, shape, told):
    """Naming the layer and what would fit; torchao itself leaves such layers unquantized or crashes."""
    with pytest.raises(UnsupportedError, match=told):
        options.check(made_up(*shape), "cpu")


def test_a_type_that_a_format_cannot_have_is_refused():
    """Before anything is loaded."""
    with pytest.raises(OptionError, match="bfloat16"):
        TorchaoOptions("mxfp4", "float16")
