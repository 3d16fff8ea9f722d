"""quanto's presets do what they say, take the memory that was predicted, and can be read back."""

from __future__ import annotations

import pytest

from llmquant.errors import NotHonouredError, OptionError, UnsupportedError
from llmquant.quantizers.quanto.options import QuantoOptions
from quantizing import load_as, made_up, write_untied

pytest.importorskip("optimum.quanto")

ALL = {
    "quanto_int8": QuantoOptions("int8"),
    "quanto_int8_float32": QuantoOptions("int8", "float32"),
    "quanto_float8": QuantoOptions("float8"),
    "quanto_int4": QuantoOptions("int4"),
}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Return the two models by name."""
    return {"tied": tiny_model, "untied": write_untied(tmp_path_factory.mktemp("untied"), tiny_model, 256)}


@pytest.fixture
def load(folders, context):
    """Return a function that loads a model under some options."""

    def run(options, name="tied"):
        from llmquant.quantizers.quanto.quantizer import Quanto

        return load_as(Quanto, options, folders[name], context())

    return run


@pytest.mark.parametrize("preset", ALL)
def test_quantized_layers_hold_the_weights_of_the_checkpoint(load, preset):
    """A product with the unit matrix, in inference mode, gives the original but for the rounding of the code."""
    import torch
    from safetensors.torch import load_file

    model = load(ALL[preset], "untied")
    name = "model.layers.1.mlp.down_proj"
    original = load_file(model.path / "model.safetensors")[f"{name}.weight"]
    with torch.inference_mode():
        held = model.module.get_submodule(name)(torch.eye(original.shape[1], dtype=model.module.dtype)).float().t()
    assert (held - original).norm() < (0.15 if model.applied.bits == 4 else 0.04) * original.norm()


@pytest.mark.parametrize("options", ALL.values())
def test_saving_is_refused_before_loading(options):
    """Transformers cannot save quanto's weights."""
    with pytest.raises(UnsupportedError, match="cannot save"):
        options.check_save("cpu")


def test_a_layer_that_is_not_quantized_is_found(load):
    """What was replaced and never filled is not called quantized."""
    import torch
    from optimum.quanto import QLinear, qint8

    from llmquant.quantizers.quanto.quantizer import Quanto

    module = torch.nn.Sequential(QLinear.from_module(torch.nn.Linear(16, 16), weights=qint8))
    with pytest.raises(NotHonouredError, match="0 of 1"):
        Quanto(QuantoOptions()).applied(module)


def test_widths_that_a_cpu_kernel_reads_wrongly_are_refused():
    """Where quanto itself returns wrong numbers or crashes; in float32 another kernel is used."""
    with pytest.raises(UnsupportedError, match=r"up_proj.*64 x 40(.|\n)*float32"):
        QuantoOptions("int8").check(made_up(64, 40), "cpu")
    QuantoOptions("int8", "float32").check(made_up(64, 40), "cpu")


@pytest.mark.parametrize("shape", [(40, 256), (64, 192), (64, 128)])
def test_widths_that_the_int4_kernel_does_not_take_are_refused(shape):
    """Naming the layer and what takes them."""
    with pytest.raises(UnsupportedError, match=r"up_proj(.|\n)*torchao_int4_g32"):
        QuantoOptions("int4").check(made_up(*shape), "cpu")


def test_a_type_that_int4_cannot_have_is_refused():
    """Before anything is loaded."""
    with pytest.raises(OptionError, match="bfloat16"):
        QuantoOptions("int4", "float32")
