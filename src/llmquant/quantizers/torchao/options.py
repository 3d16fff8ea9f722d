"""Options of the torchao quantizers, and the predicted size of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError, UnsupportedError
from llmquant.models.headers import TensorInfo
from llmquant.models.info import ModelInfo
from llmquant.quantizers.fitting import check_group_size, check_linear_layers, check_multiples
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.study.call import Json

# Lowest CUDA compute capability of a kernel, and the GPUs that have it.
Capability = tuple[int, int]
GPUS: Mapping[Capability, str] = {
    (8, 0): "Ampere or newer: A100, L40S, H100, B200",
    (8, 9): "Ada or newer: L40S, H100, B200",
    (10, 0): "Blackwell: B200, RTX 50",
}


@dataclass(frozen=True)
class Scheme:
    """One of torchao's weight formats.

    Attributes:
        code: as in `AppliedQuantization`.
        bits: bits per code.
        block_size: number of weights in a row that share a scale; ``None`` is the whole row.
        multiple: number of which both widths of a layer must be multiples.
        dynamic: whether inputs are quantized too, and the product is computed in the code.
        capability: lowest compute capability of a GPU; ``None`` means any device.
    """

    code: str
    bits: float
    block_size: int | None = None
    multiple: int = 1
    dynamic: bool = False
    capability: Capability | None = None


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("int8", 8.0),
    "int8_dynamic": Scheme("int8", 8.0, dynamic=True),
    "float8": Scheme("float8_e4m3fn", 8.0),
    "float8_dynamic": Scheme("float8_e4m3fn", 8.0, multiple=16, dynamic=True, capability=(8, 9)),
    "nvfp4": Scheme("nvfp4", 4.0, block_size=16, multiple=16),
    "nvfp4_dynamic": Scheme("nvfp4", 4.0, block_size=16, multiple=16, dynamic=True, capability=(10, 0)),
    "mxfp4": Scheme("mxfp4", 4.0, block_size=32, multiple=32, dynamic=True, capability=(10, 0)),
}
# The int4 kernel for CPUs packs this number of rows together; the kernel for tensor cores pads to rows x columns.
_INT4_ROWS = 16
TILE = (8, 1024)


@dataclass(frozen=True)
class TorchaoOptions:
    """torchao with one scale per row, or the microscaling formats.

    Attributes:
        scheme: code of the weights. ``int8`` and ``float8`` (E4M3) hold weights in 8 bits and multiply in `dtype`;
            ``nvfp4`` does the same in 4 bits with a float8 scale per 16 weights. ``*_dynamic`` and ``mxfp4`` quantize
            the inputs too, token by token, and multiply in the code.
        dtype: type of everything that is not quantized, for example bfloat16.
    """

    scheme: Literal["int8", "int8_dynamic", "float8", "float8_dynamic", "nvfp4", "nvfp4_dynamic", "mxfp4"] = "int8"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if SCHEMES[self.scheme].capability and self.dtype != "bfloat16":
            raise OptionError(f"torchao's {self.scheme} is for bfloat16, not {self.dtype}")

    def row_independent(self) -> bool:
        """Return whether a batch's rows are independent: NVFP4 scales all inputs of a layer by their largest number."""
        return self.scheme != "nvfp4_dynamic"

    def check(self, model: ModelInfo, device: str) -> None:
        scheme = SCHEMES[self.scheme]
        layers = check_linear_layers(model, device, "torchao")
        if scheme.capability and device != "cuda":
            raise UnsupportedError(
                f"torchao's {self.scheme} needs a GPU of compute capability {_version(scheme.capability)} "
                f"({GPUS[scheme.capability]}), not {device}",
                hint=f"Use {'torchao_float8' if scheme.bits == 8 else 'torchao_nvfp4'}, which runs on this device.",
            )
        hint = "Use torchao_int8 or torchao_float8."
        check_multiples(layers, scheme.multiple, scheme.multiple, f"torchao's {self.scheme}", hint)

    def serving(self) -> str | None:
        """Return what vLLM needs to load the checkpoint."""
        return "" if self.scheme.startswith(("int8", "float8")) else None

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        layers = model.linear_layers()
        rest = plain_bytes(model, 4 if self.dtype == "float32" else 2, quantized=layers)
        return rest + sum(self._layer_bytes(layer) for layer in layers)

    def requests(self) -> Mapping[str, Json]:
        scheme = SCHEMES[self.scheme]
        return {
            "method": "torchao",
            "code": scheme.code,
            "bits": scheme.bits,
            "block_size": scheme.block_size,
            "compute_dtype": scheme.code if scheme.dynamic else self.dtype,
        }

    def _layer_bytes(self, layer: TensorInfo) -> int:
        scheme, (rows, columns) = SCHEMES[self.scheme], layer.shape
        if scheme.block_size:
            # One-byte scales in tiles of 128 x 4, and NVFP4's one float32 per layer.
            scales = _round_up(rows, 128) * _round_up(-(-columns // scheme.block_size), 4)
            return layer.elements // 2 + scales + (4 if scheme.code == "nvfp4" else 0)
        # A float32 scale; int8 also has a one-byte zero point, which is 0.
        return layer.elements + rows * (5 if scheme.code == "int8" else 4)


@dataclass(frozen=True)
class TorchaoInt4Options:
    """torchao int4, weights only: a bfloat16 scale and zero point per `group_size` weights, computed in bfloat16.

    CUDA uses torchao's "tile packed to 4d" format, for tensor cores; CPUs use its "opaque" format, whose kernel is at
    least as fast as that of int8. Both formats choose codes the same way.

    Attributes:
        group_size: number of weights in a row that share a scale, for example 64.
    """

    group_size: Literal[32, 64, 128] = 128

    def check(self, model: ModelInfo, device: str) -> None:
        layers = check_linear_layers(model, device, "torchao")
        check_group_size(model, layers, self.group_size)
        if device == "cpu":
            check_multiples(layers, _INT4_ROWS, 1, "torchao's int4 kernel for CPUs", "Use torchao_int8.")

    def check_save(self, device: str) -> None:
        if device == "cpu":
            raise UnsupportedError(
                "torchao cannot save int4 weights that are packed for a CPU",
                hint="Write the checkpoint on a CUDA machine, or use torchao_int8 or gptq_4bit_g128.",
            )

    def serving(self) -> str:
        """Return what vLLM needs to load the checkpoint."""
        return ""

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the loaded weights: codes, scales, zero points and unquantized weights.

        On CUDA torchao pads layers, so layers whose rows are not a multiple of 1,024 weights take more memory.
        """
        layers = model.linear_layers()
        tile_rows, tile_columns = TILE if device == "cuda" else (1, 1)
        held = [_round_up(layer.shape[0], tile_rows) * _round_up(layer.shape[1], tile_columns) for layer in layers]
        quantized = sum(weights // 2 + 4 * (weights // self.group_size) for weights in held)
        return plain_bytes(model, 2, quantized=layers) + quantized

    def requests(self) -> Mapping[str, Json]:
        return {"method": "torchao", "code": "int4", "bits": 4.0, "block_size": self.group_size}


def check_capability(found: Capability, needed: Capability, scheme: str) -> None:
    """Refuse a GPU that is too old.

    Raises:
        UnsupportedError: naming the needed and the found capability.
    """
    if found < needed:
        raise UnsupportedError(
            f"torchao's {scheme} needs compute capability {_version(needed)} ({GPUS[needed]}); "
            f"this GPU has {_version(found)}",
            hint="Use torchao_int8 or torchao_float8, which run on every GPU.",
        )


def _version(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
