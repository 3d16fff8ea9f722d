"""torchao: weights quantized to 8 or 4 bits while they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torchao.kernel import int_scaled_matmul
from torchao.prototype.mx_formats.inference_workflow import (
    MXDynamicActivationMXWeightConfig,
    NVFP4DynamicActivationNVFP4WeightConfig,
    NVFP4WeightOnlyConfig,
)
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int4TilePackedTo4dTensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    PerRow,
)
from torchao.quantization.quantize_.workflows import Int4PackingFormat
from transformers import TorchAoConfig

from llmquant.errors import NotHonouredError, UnsupportedError
from llmquant.loading.memory import stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.reading import dtype_name, fused_experts_note, linear_names, only
from llmquant.quantizers.torchao.options import SCHEMES, TILE, TorchaoInt4Options, TorchaoOptions, check_capability

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

_Options = TypeVar("_Options", bound=TorchaoOptions | TorchaoInt4Options)

# `set_inductor_config` would change settings of the whole process, the precision of float32 products among them.
_CONFIGS: Mapping[str, Callable[[], Any]] = {  # Any: torchao's configurations
    "int8": lambda: Int8WeightOnlyConfig(set_inductor_config=False),
    "int8_dynamic": lambda: Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
    "float8": lambda: Float8WeightOnlyConfig(set_inductor_config=False),
    "float8_dynamic": lambda: Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), set_inductor_config=False
    ),
    "nvfp4": NVFP4WeightOnlyConfig,
    # The fused kernel needs a package that is not on the index for every platform.
    "nvfp4_dynamic": lambda: NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False),
    "mxfp4": lambda: MXDynamicActivationMXWeightConfig(
        activation_dtype=torch.float4_e2m1fn_x2, weight_dtype=torch.float4_e2m1fn_x2
    ),
}


@dataclass(frozen=True)
class _Weight:
    """The settings of one layer's weight; fields as in `AppliedQuantization`."""

    code: str
    bits: float
    block_size: int | None
    double_quantization: bool
    compute_dtype: str
    note: str


class _ReadBack(Quantizer[_Options]):
    """The shared part of the two quantizers: how their weights are read back."""

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        weights = {name: child.weight for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
        found = {name: read for name, weight in weights.items() if (read := _read(weight)) is not None}
        if not found:
            raise NotHonouredError(f"none of {len(weights)} linear layers holds weights quantized by torchao")
        first = only(found.values(), "quantization")
        quantized = [weights[name] for name in found]
        padded = sum(isinstance(w, Int4TilePackedTo4dTensor) and w.shape[1] % TILE[1] > 0 for w in quantized)
        padding = f"rows of {padded} layers are padded to multiples of {TILE[1]} weights" if padded else ""
        return AppliedQuantization(
            method="torchao",
            code=first.code,
            bits=first.bits,
            block_size=first.block_size,
            double_quantization=first.double_quantization,
            compute_dtype=first.compute_dtype,
            dtypes=stored_elements(module),
            layers_quantized=len(found),
            layers_left=tuple(name for name in linear_names(module) if name not in found),
            note="; ".join(filter(None, (first.note, padding, fused_experts_note(module)))),
        )


class Torchao(_ReadBack[TorchaoOptions]):
    """int8 and float8 with one scale per row, NVFP4 and MXFP4 with one scale per 16 or 32 weights."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        name = self.options.scheme
        needed = SCHEMES[name].capability
        if needed:
            check_capability(torch.cuda.get_device_capability(), needed, name)
        if name == "int8_dynamic" and ctx.device == "cpu":
            _check_int8_matmul()
        return {"quantization_config": TorchAoConfig(_CONFIGS[name]()), "dtype": getattr(torch, self.options.dtype)}


class TorchaoInt4(_ReadBack[TorchaoInt4Options]):
    """int4 with a scale and a zero point per group of weights."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        group_size = self.options.group_size
        if ctx.device == "cuda":
            check_capability(torch.cuda.get_device_capability(), (8, 0), "int4")
            packing = Int4PackingFormat.TILE_PACKED_TO_4D
            config = Int4WeightOnlyConfig(group_size, set_inductor_config=False, int4_packing_format=packing)
        else:
            config = PrototypeInt4WeightOnlyConfig(group_size, set_inductor_config=False)
        return {"quantization_config": TorchAoConfig(config), "dtype": torch.bfloat16}


def _read(weight: Any) -> _Weight | None:  # Any: a tensor of one of torchao's classes
    """Read a weight; ``None`` if torchao did not quantize it."""
    plain = dtype_name(weight.dtype)
    if isinstance(weight, Int4OpaqueTensor | Int4TilePackedTo4dTensor):
        return _Weight("int4", 4.0, weight.block_size[-1], False, plain, "")
    if isinstance(weight, Int8Tensor | Float8Tensor):
        code, bits = dtype_name(weight.qdata.dtype), 8.0 * weight.qdata.dtype.itemsize
        block_size = weight.block_size[-1] if weight.block_size[-1] < weight.shape[-1] else None
    elif isinstance(weight, NVFP4Tensor):
        code, bits, block_size = "nvfp4", 4.0, weight.block_size
    elif isinstance(weight, MXTensor):
        code = "mxfp4" if weight.elem_dtype == torch.float4_e2m1fn_x2 else f"mx {dtype_name(weight.elem_dtype)}"
        bits, block_size = 8.0 * weight.qdata.nbytes / weight.numel(), weight.block_size
    else:
        return None
    dynamic = weight.act_quant_kwargs is not None
    note = "" if dynamic else f"weights are expanded to {plain} in every forward pass"
    # NVFP4's scales are float8 numbers, with one float32 scale per layer.
    return _Weight(code, bits, block_size, code == "nvfp4", code if dynamic else plain, note)


def _check_int8_matmul() -> None:
    """Refuse a CPU on which the product of int8 matrices overflows.

    Without VNNI instructions oneDNN adds products of int8 in 16 bits, which saturate without a warning.
    """
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    product = int_scaled_matmul(codes, codes.t(), torch.ones(16, 1))
    if not bool((product == 64 * 127 * 127).all()):
        raise UnsupportedError(
            "PyTorch multiplies int8 matrices wrongly on this CPU: it has no VNNI instructions, and sums overflow",
            hint="Use torchao_int8, which multiplies in bfloat16.",
        )
