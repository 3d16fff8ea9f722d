"""optimum-quanto: weights quantized to 8 or 4 bits while they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from optimum.quanto import QLinear
from transformers import QuantoConfig

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.quanto.options import QuantoOptions
from llmquant.quantizers.reading import dtype_name, fused_experts_note, linear_names, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs


class Quanto(Quantizer[QuantoOptions]):
    """8 bits with one scale per row, or 4 bits with a scale and a shift per 128 weights."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        options = self.options
        return {"quantization_config": QuantoConfig(weights=options.weights), "dtype": getattr(torch, options.dtype)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        layers = [child for child in module.modules() if isinstance(child, QLinear)]
        weights = [layer.weight for layer in layers if layer.frozen]
        if not layers or len(weights) < len(layers):
            raise NotHonouredError(f"{len(weights)} of {len(layers)} layers of quanto hold quantized weights")
        return AppliedQuantization(
            method="quanto",
            code=only((weight.qtype.name.removeprefix("q") for weight in weights), "code"),
            bits=8.0 * sum(_code_bytes(weight) for weight in weights) / sum(weight.numel() for weight in weights),
            # Tensors of 8 bits have no group size.
            block_size=only((getattr(weight, "_group_size", None) for weight in weights), "group size"),
            compute_dtype=only((dtype_name(weight.dtype) for weight in weights), "compute type"),
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=linear_names(module, QLinear),
            note=fused_experts_note(module),
        )


def _code_bytes(weight: Any) -> int:  # Any: a weight tensor of quanto
    data = weight._data
    # Codes of 4 bits are in a separate wrapper.
    return int(getattr(data, "_data", data).nbytes)
