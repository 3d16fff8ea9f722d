"""What hqq, quanto and torchao promise alike: memory as predicted and read back, and models and devices they refuse."""

from __future__ import annotations

import pytest

from llmquant.errors import UnsupportedError
from llmquant.plugins.registry import registry
from llmquant.study.call import Call
from quantizing import EMPTY, GPT2, QUANTIZED, load_as, logits, made_up, stored_as_said, write_untied

METHODS = ["hqq", "quanto", "torchao", "torchao_int4(32)"]
# The tied model's rows are too short for quanto's int4.
BOTH = [
    "hqq(3, group_size=32)",
    "quanto(int8)",
    "quanto(int8, dtype=float32)",
    "quanto(float8)",
    "torchao(int8)",
    "torchao(int8, dtype=float32)",
    "torchao(int8_dynamic)",
    "torchao(float8)",
    "torchao(nvfp4)",
    "torchao_int4(32)",
]
CASES = [
    *((call, name) for call in BOTH for name in ("tied", "untied")),
    *(
        (call, "tied")
        for call in (
            "hqq(8, group_size=32)",
            "hqq(4, group_size=32)",
            "hqq(4, group_size=32, dtype=float32)",
            "hqq(2, group_size=32)",
        )
    ),
    ("quanto(int4)", "untied"),
]


def _chosen(call: str):
    chosen = registry().choose("quantizer", Call.parse(call))
    if missing := registry().missing(chosen.plugin):
        pytest.skip(missing.message)
    return chosen


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Return the two models by name."""
    return {"tied": tiny_model, "untied": write_untied(tmp_path_factory.mktemp("untied"), tiny_model, 256)}


@pytest.mark.parametrize(("call", "name"), CASES)
def test_what_is_held_is_what_was_predicted_and_read(folders, context, call, name):
    """Exactly, before and after the first forward pass, with and without a head and biases of its own."""
    from llmquant.loading.memory import weight_bytes

    chosen = _chosen(call)
    options = chosen.options
    model = load_as(registry().target(chosen.plugin), options, folders[name], context())
    assert weight_bytes(model.module).total == options.weight_bytes(model.info, "cpu")
    assert logits(model.module).isfinite().all()
    assert weight_bytes(model.module).total == options.weight_bytes(model.info, "cpu")
    assert model.applied.layers_quantized == len(model.info.linear_layers()) == 14
    assert model.applied.layers_left == ("lm_head",)
    assert stored_as_said(model)


@pytest.mark.parametrize("model", [QUANTIZED, GPT2, EMPTY], ids=["quantized", "Conv1D", "empty"])
@pytest.mark.parametrize("call", METHODS)
def test_models_with_nothing_to_quantize_are_refused(call, model):
    """Quantized checkpoints, layers that are not nn.Linear, and no layers."""
    with pytest.raises(UnsupportedError, match=r"awq 4-bit|Conv1D|no linear layers"):
        _chosen(call).options.check(model, "cpu")


@pytest.mark.parametrize("call", METHODS)
def test_a_device_that_a_method_is_not_run_on_is_refused(call):
    """With the nearest preset that works there."""
    with pytest.raises(UnsupportedError, match="bf16_baseline"):
        _chosen(call).options.check(made_up(64, 64), "mps")
