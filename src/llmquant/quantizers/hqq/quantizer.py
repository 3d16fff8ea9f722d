"""HQQ: weights quantized to 8, 4, 3 or 2 bits while they are loaded.

transformers 5 has HQQ's configuration but raises ``NotImplementedError`` when it is used. This module adds the missing
part through transformers' hooks for third-party quantizers, around HQQ's own quantization and dequantization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from hqq.core.quantize import BaseQuantizeConfig
from hqq.core.quantize import Quantizer as HqqQuantizer
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.hqq.options import HqqOptions
from llmquant.quantizers.reading import dtype_name, fused_experts_note, linear_names, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# The name "hqq" belongs to transformers.
_METHOD = "llmquant_hqq"


class Hqq(Quantizer[HqqOptions]):
    """Codes of a few bits with a scale and a zero point per group of weights."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        if _METHOD not in AUTO_QUANTIZER_MAPPING:
            register_quantizer(_METHOD)(_HqqLoader)
        options = self.options
        return {
            "quantization_config": _HqqConfig(options.bits, options.group_size),
            "dtype": getattr(torch, options.dtype),
        }

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        layers = [child for child in module.modules() if isinstance(child, HqqLinear)]
        held = [layer for layer in layers if layer.qweight is not None]
        if not layers or len(held) < len(layers):
            raise NotHonouredError(f"{len(held)} of {len(layers)} layers of HQQ hold quantized weights")
        bits = only((layer.meta["nbits"] for layer in layers), "bits")
        compute = only((dtype_name(layer.scales.dtype) for layer in layers), "compute type")
        expanded = f"weights are expanded to {compute} in every forward pass"
        return AppliedQuantization(
            method="hqq",
            code=f"int{bits}",
            bits=float(bits),
            block_size=only((layer.elements // layer.scales.numel() for layer in layers), "group size"),
            compute_dtype=compute,
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=linear_names(module),
            note="; ".join(filter(None, (expanded, fused_experts_note(module)))),
        )


class HqqLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
    """A linear layer that holds its weight packed by HQQ, and expands the weight in every forward pass.

    Attributes:
        weight: a placeholder that marks the checkpoint's tensor for this layer; removed when the weight is quantized.
        qweight: packed codes; ``None`` until the weight is quantized.
        scales: one scale per group, in the compute type.
        zeros: one zero point per group, in the compute type.
        meta: HQQ's settings for unpacking `qweight`.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.elements = layer.in_features * layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.meta: dict[str, Any] = {}  # Any: HQQ's own record of a packed tensor
        for name in ("qweight", "scales", "zeros"):
            self.register_buffer(name, None)

    def quantize(self, weight: torch.Tensor, bits: int, group_size: int) -> None:
        """Quantize `weight`, ``(out_features, in_features)``, in its own type and on its device."""
        # HQQ's own choices for these bits, such as whole zero points for 4.
        parameters = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)["weight_quant_params"]
        self.qweight, meta = HqqQuantizer.quantize(
            weight, compute_dtype=weight.dtype, device=str(weight.device), **parameters
        )
        self.scales, self.zeros = meta.pop("scale").to(weight.dtype), meta.pop("zero").to(weight.dtype)
        self.meta = {**meta, "compute_dtype": weight.dtype}
        self.weight = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``(..., in_features)`` by the expanded weight."""
        weight = HqqQuantizer.dequantize(self.qweight, {**self.meta, "scale": self.scales, "zero": self.zeros})
        return torch.nn.functional.linear(x, weight, self.bias)


class _HqqConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped here
    """The configuration that transformers passes to `_HqqLoader`."""

    def __init__(self, bits: int, group_size: int) -> None:
        self.quant_method = _METHOD
        self.bits = bits
        self.group_size = group_size


class _HqqLoader(HfQuantizer):  # type: ignore[misc]  # transformers is untyped here
    """Replaces each linear layer with an `HqqLinear` before weights are loaded, except heads and tied layers."""

    is_trainable = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:  # Any: transformers' signature
        left = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and should_convert_module(name, left):
                model.set_submodule(name, HqqLinear(module))

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:  # Any: see above
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, HqqLinear) and name == "weight"

    def get_quantize_ops(self) -> _Quantize:
        return _Quantize(self.quantization_config)

    def is_serializable(self) -> bool:
        return False


class _Quantize(ConversionOps):  # type: ignore[misc]  # transformers is untyped here
    """Quantizes one weight when it is read from the file."""

    def __init__(self, config: _HqqConfig) -> None:
        self._config = config

    def convert(
        self,
        input_dict: dict[str, Any],  # Any: a tensor or a list of one
        model: Any = None,  # Any: transformers
        full_layer_name: str | None = None,
        missing_keys: Any = None,  # Any: transformers
        **kwargs: Any,  # Any: transformers
    ) -> dict[str, torch.Tensor]:
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        module, _ = get_module_from_name(model, full_layer_name)
        module.quantize(weight, self._config.bits, self._config.group_size)
        module._is_hf_initialized = True
        missing_keys.discard(full_layer_name)
        return {}
