"""compressed-tensors: round to nearest without data, in the checkpoint format that vLLM documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoTokenizer

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements, weight_bytes
from llmquant.loading.strict import load_causal
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.compressed_tensors.options import CompressedTensorsOptions
from llmquant.quantizers.reading import dtype_name, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

_PRESETS = {"w8a8": "W8A8", "w4a16": "W4A16", "fp8": "FP8_DYNAMIC"}
# In bfloat16 a code times its scale has an error of up to 1 / 256 of the product; unrounded weights differ by more.
_BLUR = 1 / 250
_ROWS_READ = 16


class CompressedTensors(Quantizer[CompressedTensorsOptions]):
    """Linear layers whose scales come from the largest weight of a row or group."""

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Quantize and write the checkpoint to `out`; unquantized weights are stored in bfloat16.

        Scales follow compressed-tensors: ``max|w|`` of a row or group is half the range of codes.
        """
        # Not in bfloat16: dividing by the scale would round int8 codes a second time, by up to half a step.
        module = load_causal(model, model.name, {"dtype": torch.float32}, allow_pickle=True)
        head = module.get_output_embeddings()
        scheme = preset_name_to_scheme(_PRESETS[self.options.scheme], ["Linear"])
        if self.options.scheme == "w4a16":
            scheme.weights.group_size = self.options.group_size
        config = QuantizationConfig(
            config_groups={"group_0": scheme},
            ignore=[name for name, child in module.named_modules() if child is head],
            quantization_status=QuantizationStatus.FROZEN,
        )
        apply_quantization_config(module, config, show_progress=False)
        layers = _layers(module)
        for done, layer in enumerate(layers, start=1):
            groups = layer.weight.detach().unflatten(1, (layer.weight_scale.shape[1], -1))
            scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            layer.weight_scale.data.copy_(scale.bfloat16())  # codes must fit the stored scale
            layer.weight_zero_point.data.copy_(zero_point)
            ctx.progress(done, len(layers))
        compressor = ModelCompressor.from_pretrained_model(module)
        compressor.compress_model(module)
        for tensor in module.parameters():
            if tensor.dtype == torch.float32:
                tensor.data = tensor.data.bfloat16()
        module.save_pretrained(out)
        compressor.update_config(str(out))
        AutoTokenizer.from_pretrained(model).save_pretrained(out)
        return out

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        return {"dtype": torch.bfloat16}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back the settings of the layers, before or after the first forward pass dequantizes the weights."""
        layers = _layers(module)
        if not layers:
            raise NotHonouredError("no layer has a quantization scheme")
        code = only((_code(layer) for layer in layers), "code")
        bits = 4 if code == "int4" else 8
        dtype = only((dtype_name(layer.weight_scale.dtype) for layer in layers), "type of scales")
        inputs = layers[0].quantization_scheme.input_activations
        rounded = f"inputs are rounded to {inputs.num_bits} bits, one scale per token; " if inputs else ""
        return AppliedQuantization(
            method="compressed-tensors",
            code=code,
            bits=float(bits),
            block_size=only((_block_size(layer) for layer in layers), "group size"),
            compute_dtype=dtype,
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, torch.nn.Linear) and not hasattr(child, "quantization_scheme")
            ),
            note=f"round to nearest, no calibration; {rounded}runs dequantized in {dtype}: memory and speed are not "
            "those of vLLM's kernels",
            served_bytes=weight_bytes(module).total + sum(_codes_bytes(layer, bits) for layer in layers),
        )


def _codes_bytes(layer: Any, bits: int) -> int:  # Any: see _layers
    """Return by how much a layer's codes are larger than what it holds; negative for dequantized weights."""
    held = getattr(layer, "weight_packed", None)
    held = layer.weight if held is None else held
    return int(layer.in_features * layer.out_features * bits // 8 - held.numel() * held.element_size())


def _layers(module: torch.nn.Module) -> list[Any]:  # Any: linear layers with the attributes compressed-tensors adds
    return [
        child
        for child in module.modules()
        if isinstance(child, torch.nn.Linear) and hasattr(child, "quantization_scheme")
    ]


def _block_size(layer: Any) -> int | None:  # Any: see _layers
    grouped = layer.quantization_scheme.weights.strategy == QuantizationStrategy.GROUP
    return int(layer.in_features // layer.weight_scale.shape[1]) if grouped else None


def _code(layer: Any) -> str:  # Any: see _layers
    """Name the code of the weights: from the stored tensors, or from the grid of the dequantized weights."""
    packed = getattr(layer, "weight_packed", None)
    if packed is not None:
        return f"int{32 * packed.shape[1] // layer.in_features}"
    if layer.weight.dtype in (torch.int8, torch.float8_e4m3fn):
        return dtype_name(layer.weight.dtype)
    scale = layer.weight_scale[:_ROWS_READ].float()
    codes = layer.weight[:_ROWS_READ].float() / scale.repeat_interleave(layer.in_features // scale.shape[1], dim=1)
    args = layer.quantization_scheme.weights
    if args.type == QuantizationType.FLOAT:
        code, nearest = "float8_e4m3fn", codes.to(torch.float8_e4m3fn).float()
    else:
        most = 2 ** (args.num_bits - 1)
        code, nearest = f"int{args.num_bits}", codes.round().clamp(-most, most - 1)
    off = ((codes - nearest).abs() > _BLUR * nearest.abs()).any()
    if off:
        raise NotHonouredError(f"dequantized weights are not multiples of their scales in {code}")
    return code
