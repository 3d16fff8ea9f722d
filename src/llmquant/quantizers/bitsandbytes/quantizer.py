"""bitsandbytes: weights quantized to 4 or 8 bits while they are loaded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from transformers import BitsAndBytesConfig

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions, computes_in, fits_packed
from llmquant.quantizers.reading import dtype_name, fused_experts_note, linear_names, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs


class Bnb4bit(Quantizer[Bnb4bitOptions]):
    """NF4 or FP4 with one scale per 64 weights."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        options = self.options
        packs = ctx.device == "cpu" and bitsandbytes.functional.has_avx512bf16()
        compute = getattr(torch, computes_in(options, ctx.device, packs=packs))
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quant_type,
            bnb_4bit_use_double_quant=options.double_quant,
            bnb_4bit_compute_dtype=compute,
        )
        return {"quantization_config": config, "dtype": compute if compute.itemsize == 2 else torch.bfloat16}

    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        """Prepare the layers, without the packed kernel if it would ignore the requested compute type."""
        settle_4bit(module, pack=self.options.compute_dtype not in ("float16", "float32"), to_save=to_save)

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back the settings of the layers, before or after the first forward pass."""
        kind = bitsandbytes.nn.Linear4bit
        layers = _layers_4bit(module)
        states = [layer.weight.quant_state for layer in layers]
        if not states or None in states:
            raise NotHonouredError(f"{states.count(None)} of {len(layers)} 4-bit layers hold quantized weights")
        packed = sum(_packs(layer) for layer in layers)
        repacked = f"for AVX512-BF16 {packed} of {len(layers)} layers are repacked with bfloat16 scales"
        return AppliedQuantization(
            method="bitsandbytes",
            code=only((state.quant_type for state in states), "code"),
            bits=4.0,
            block_size=only((state.blocksize for state in states), "block size"),
            double_quantization=only((_is_nested(state) for state in states), "double quantization"),
            compute_dtype=only((_compute_dtype(layer) for layer in layers), "compute type"),
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=linear_names(module, kind),
            note="; ".join(filter(None, (repacked if packed else "", fused_experts_note(module)))),
        )


class Bnb8bit(Quantizer[Bnb8bitOptions]):
    """LLM.int8(): one scale per row, outlier columns of the input in 16 bits."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        name = self.options.dtype
        if name == "auto":
            # Gemma 3 was trained in bfloat16, and its residual stream is known to grow beyond float16's 65,504.
            gemma = str(model.text_config.get("model_type", "")).startswith("gemma3")
            name = "float16" if ctx.device == "cuda" and not gemma else "bfloat16"
        # In every layer of every pass bitsandbytes warns that inputs are rounded to float16, which `applied` notes: for
        # SmolLM2 210 lines per token.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.options.threshold)
        return {"quantization_config": config, "dtype": getattr(torch, name)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back the settings of the layers, before or after the first forward pass."""
        kind = bitsandbytes.nn.Linear8bitLt
        layers = [child for child in module.modules() if isinstance(child, kind)]
        held = [layer for layer in layers if layer.weight.dtype == torch.int8 and _scales(layer) is not None]
        if not layers or len(held) < len(layers):
            raise NotHonouredError(f"{len(held)} of {len(layers)} 8-bit layers hold int8 weights and their scales")
        threshold = only((layer.state.threshold for layer in layers), "outlier threshold")
        if threshold != self.options.threshold:
            raise NotHonouredError(f"asked for threshold {self.options.threshold}, found {threshold}")
        columns = f"columns above {threshold} multiply in 16 bits" if threshold else ""
        notes = ("inputs are rounded to float16", columns, fused_experts_note(module))
        return AppliedQuantization(
            method="bitsandbytes",
            code="int8",
            bits=8.0,
            compute_dtype="int8",
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=linear_names(module, kind),
            note="; ".join(filter(None, notes)),
        )


def settle_4bit(module: torch.nn.Module, *, pack: bool = True, to_save: bool) -> None:
    """Prepare every layer on a CPU as bitsandbytes does in the first forward pass, including layers never reached.

    With AVX512-BF16 the weights are repacked, which fails for shapes that the packed kernel does not support; such
    layers compute as on other CPUs. Without AVX512-BF16, biases take the compute type.

    Args:
        pack: whether to repack; with ``False`` all layers compute as on other CPUs.
        to_save: leave the weights unpacked, because unpacking them again would round the scales.
    """
    for layer in _layers_4bit(module):
        if _packs(layer) and not (pack and fits_packed(layer.weight.quant_state.shape)):
            layer.support_avx512bf16_for_cpu = False
            if pack:
                layer.compute_dtype = torch.bfloat16  # like the repacked layers, whatever their checkpoint says
        if layer.weight.device.type == "cpu" and not to_save:
            with torch.no_grad():
                layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))


def _layers_4bit(module: torch.nn.Module) -> list[Any]:  # Any: Linear4bit of bitsandbytes
    return [child for child in module.modules() if isinstance(child, bitsandbytes.nn.Linear4bit)]


def _packs(layer: Any) -> bool:  # Any: a Linear4bit of bitsandbytes
    """Return whether a layer was repacked for AVX512-BF16, or will be in its first forward pass."""
    return layer.weight.device.type == "cpu" and bool(getattr(layer, "support_avx512bf16_for_cpu", False))


def _is_nested(state: Any) -> bool:  # Any: a QuantState of bitsandbytes
    """Return whether the scales were quantized; repacking for a CPU expands the scales and records that."""
    packed = getattr(state, "packing_format_for_cpu", False)
    return bool(state.original_nested if packed else state.nested)


def _compute_dtype(layer: Any) -> str:  # Any: a Linear4bit of bitsandbytes
    """Name the type in which a layer multiplies; the AVX512-BF16 kernel ignores the requested type."""
    return "bfloat16" if _packs(layer) else dtype_name(layer.compute_dtype)


def _scales(layer: Any) -> torch.Tensor | None:  # Any: a Linear8bitLt of bitsandbytes
    """Find the scales; the first forward pass moves the scales from the weight to the layer."""
    found: torch.Tensor | None = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return found
