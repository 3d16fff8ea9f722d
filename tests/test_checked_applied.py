"""What a quantizer says of the weights is refused where the weights say something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmquant.errors import PluginError
from llmquant.loading.checked_applied import check_applied
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization


class Packed(torch.nn.Module):
    """A linear layer of 4-bit codes, two in a byte, and a scale for each of its rows."""

    def __init__(self, rows: int = 32, columns: int = 64) -> None:
        super().__init__()
        self.out_features, self.in_features = rows, columns
        self.register_buffer("qweight", torch.zeros(rows, columns // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.ones(rows, dtype=torch.bfloat16))


@pytest.fixture
def module():
    """Two packed layers, a linear one, a norm, and rotary frequencies."""
    layers = {"up": Packed(), "down": Packed(64, 32), "head": torch.nn.Linear(64, 10), "norm": torch.nn.LayerNorm(64)}
    made = torch.nn.ModuleDict(layers)
    made.register_buffer("inv_freq", torch.ones(8))
    return made


DTYPES = {"uint8": 2048, "bfloat16": 96, "float32": 778}
TRUE = AppliedQuantization("mine", "int4", 4.0, "bfloat16", DTYPES, 2, layers_left=("head",))


def test_elements_are_counted_as_they_are_stored(module):
    """Packed words and scales count, tied weights once, rotary frequencies not."""
    module["tied"] = torch.nn.Linear(64, 10)
    module["tied"].weight, module["tied"].bias = module["head"].weight, module["head"].bias
    assert stored_elements(module) == DTYPES


@pytest.mark.parametrize(
    "changes",
    [{}, {"dtypes": {**DTYPES, "float32": 786}}, {"dtypes": {"uint8": 2048, "float32": 778}}, {"layers_left": ()}],
    ids=["all", "with rotary frequencies", "without scales", "without names of what was left"],
)
def test_what_is_true_passes(module, changes):
    """Scales and other buffers may be counted or not; every parameter has to be."""
    check_applied(replace(TRUE, **changes), module, "mine/int4")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtypes": {}}, "dtypes {}, and 2048 elements are stored as uint8|and 786 elements are stored as float32"),
        ({"dtypes": {"int4": 4096, "float32": 778}}, "0 elements are stored as int4"),
        ({"dtypes": {**DTYPES, "uint8": 4096}}, "2048 elements are stored as uint8"),
        ({"dtypes": {**DTYPES, "float32": 10}}, "786 elements are stored as float32"),
        ({"dtypes": {**DTYPES, "uint8": "2048"}}, "dtypes.uint8 must be a whole number, found '2048'"),
        ({"layers_quantized": 4}, "layers_quantized 4, and only 3 layers hold weights"),
        ({"layers_quantized": 3}, "layers_quantized 3, and only 3 layers hold weights"),
        ({"layers_quantized": -1}, "layers_quantized must be at least 0, found -1"),
        ({"layers_quantized": True}, "layers_quantized must be a whole number, found True"),
        ({"layers_left": ("lm_head",)}, "layers_left .*, and 'lm_head' holds no weights"),
        ({"layers_left": ("head", "head")}, "a layer is named twice"),
        ({"layers_left": "head"}, "layers_left must be a list, found 'head'"),
        ({"method": "none"}, "layers_quantized 2, and the method is 'none'"),
        ({"method": ""}, "method ''"),
        ({"bits": 8.0}, "bits 8.0, and the linear layers hold 4.38 bits per weight"),
        ({"bits": 0}, "bits 0"),
        ({"bits": "4"}, "bits must be a finite number, found '4'"),
        ({"block_size": 0.5}, "block_size must be a whole number, found 0.5"),
        ({"double_quantization": None}, "double_quantization must be true or false, found None"),
        ({"note": None}, "note must be a text, found None"),
    ],
)
def test_what_is_false_is_named(module, changes, complaint):
    """The error names the quantizer, the field, what it says and what the module holds."""
    with pytest.raises(PluginError, match=f"mine/int4: applied\\(\\)( says .*|.)({complaint})"):
        check_applied(replace(TRUE, **changes), module, "mine/int4")


def test_what_is_no_description_is_refused(module):
    """Such as a dictionary."""
    with pytest.raises(PluginError, match="applied\\(\\) returned dict, not AppliedQuantization"):
        check_applied(vars(TRUE), module, "mine/int4")
