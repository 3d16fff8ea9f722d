"""A quantizer of activations, with a scale per token or one for the whole batch. Imported by workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant import AppliedQuantization, PluginSpec, QuantizerOptions


@dataclass(frozen=True)
class CouplingOptions(QuantizerOptions):
    """What a scale is for, the code, and the type of the rest."""

    over: Literal["token", "batch"] = "batch"
    code: Literal["int8", "float8_e4m3fn"] = "int8"
    dtype: Literal["float32", "bfloat16"] = "float32"


class Coupling:
    """Rounds the inputs of linear layers."""

    def __init__(self, options: CouplingOptions) -> None:
        self._options = options

    def load_kwargs(self, model, ctx):
        return {"dtype": self._options.dtype}

    def after_load(self, module, *, to_save):
        import torch

        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda _, inputs: (self._rounded(inputs[0]), *inputs[1:]))

    def applied(self, module):
        import torch

        from llmquant.loading.memory import stored_elements

        dtype, layers = self._options.dtype, [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        bits = 8.0 * getattr(torch, dtype).itemsize
        return AppliedQuantization("coupling", dtype, bits, dtype, stored_elements(module), len(layers))

    def _rounded(self, inputs):
        import torch

        code = getattr(torch, self._options.code)
        most = (torch.finfo if code.is_floating_point else torch.iinfo)(code).max
        size = inputs.float().abs()
        scale = (size.amax(-1, keepdim=True) if self._options.over == "token" else size.max()).clamp(min=1e-9) / most
        codes = inputs.float() / scale
        return ((codes if code.is_floating_point else codes.round()).to(code).float() * scale).to(inputs.dtype)


SPEC = PluginSpec("quantizer", "coupling", "Rounds inputs.", "coupling:CouplingOptions", "coupling:Coupling")
