"""GGUF: weights quantized by llama.cpp's own code: dequantized to measure their loss, or written as a .gguf file."""

from __future__ import annotations

import ctypes
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import libggml
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from llmquant.errors import NotHonouredError, UnsupportedError
from llmquant.models.folder import Checkpoint, read_checkpoint
from llmquant.models.gguf import read_gguf_header
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.gguf.file import plan_file, write_file
from llmquant.quantizers.gguf.options import (
    BLOCK_TYPES,
    GgufOptions,
    block_types,
    in_block,
    not_exported,
    tensor_bytes,
)
from llmquant.quantizers.reading import dtype_name, elements_by_dtype, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# Number of weights that a thread quantizes at a time.
_CHUNK = 2**18
# Number of evenly spread rows per weight that are read back.
_ROWS_READ = 4
# Quantizing again moves weights on the grid of their type by up to 0.4 of a rounding error (bfloat16 blurs the scale of
# Q8_0, and the search of Q3_K is not a projection); other weights move by a whole rounding error.
_MAY_MOVE = 0.6


class Gguf(Quantizer[GgufOptions]):
    """A checkpoint with the dequantized weights of a .gguf file."""

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Write the checkpoint to `out` file by file, so that only one file's weights are in memory at a time."""
        types, done = self._types(model), 0
        for file in _checkpoint(model).weight_files:
            tensors = load_file(model / file)
            for name in tensors:
                if tensors[name].is_floating_point():
                    rows = tensors[name].float()
                    if name in types:
                        rows = torch.from_numpy(_round_trip(rows.numpy(), types[name]))
                        done += 1
                        ctx.progress(done, len(types))
                    tensors[name] = rows.to(getattr(torch, self.options.dtype))
            save_file(tensors, out / file, metadata={"format": "pt"})
        for other in model.iterdir():
            if other.is_file() and other.suffix in (".json", ".jinja", ".model", ".txt"):
                shutil.copyfile(other, out / other.name)
        return out

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        return {"dtype": getattr(torch, self.options.dtype)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Check that every weight is on the grid of its block type: quantizing a weight again must not move it.

        Bits and block size describe the layers, without embeddings and head, for which file types use more bits.
        """
        weights = {name: weight.detach() for name, weight in module.named_parameters()}
        config = module.config.get_text_config().to_dict()
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        types = block_types(shapes, config, self.options.file_type)
        for name, block_type in types.items():
            moved = _moved(weights[name], block_type)
            if moved > _MAY_MOVE * BLOCK_TYPES[block_type].error:
                raise NotHonouredError(
                    f"{name} is not quantized as {block_type}: quantizing it again changes it by {moved:.2%}"
                )
        dtype = only((dtype_name(weights[name].dtype) for name in types), "type")
        note = f"runs dequantized in {dtype}: the loss is that of the .gguf file's weights, memory and speed are not"
        return self._described(
            shapes,
            types,
            dtype,
            elements_by_dtype(module),
            sum(isinstance(child, torch.nn.Linear) for child in module.modules()),
            f"{note}; llama.cpp's rounding of activations to 8 bits is not included",
        )

    def check_export(self, folder: Path, model: ModelInfo) -> None:
        try:
            plan_file(folder, model)
        except UnsupportedError as error:
            raise not_exported(model, error) from error

    def export(self, folder: Path, model: ModelInfo, out: Path, ctx: Context) -> AppliedQuantization:
        """Write the blocks that `prepare` dequantizes, and compare the file's header with the types of the blocks."""
        plan, types = plan_file(folder, model), self._types(folder)
        for done in write_file(plan, out, self.options.file_type, types, _blocks):
            ctx.progress(done, len(plan.names))
        header = {tensor.name: tensor for tensor in read_gguf_header(out).tensors}
        found = {name: header[written] for name, written in plan.names.items()}
        wrong = [name for name, tensor in found.items() if tensor.dtype != types.get(name, "float32")]
        if wrong:
            raise NotHonouredError(f"{wrong[0]} was written as {found[wrong[0]].dtype}")
        elements = Counter[str]()
        for tensor in found.values():
            elements[tensor.dtype] += tensor.elements
        shapes = {name: tensor.shape for name, tensor in found.items()}
        layers = sum(len(shape) > 1 and "embed_tokens" not in name for name, shape in shapes.items())
        return self._described(shapes, types, dtype_name(None), elements, layers, "")

    def _types(self, folder: Path) -> dict[str, str]:
        found = _checkpoint(folder)
        shapes = {tensor.name: tensor.shape for tensor in found.tensors}
        return block_types(shapes, found.config.get("text_config") or found.config, self.options.file_type)

    def _described(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        types: Mapping[str, str],
        compute_dtype: str,
        dtypes: Mapping[str, int],
        layers_quantized: int,
        note: str,
    ) -> AppliedQuantization:
        counts = Counter(types[name] for name in shapes if name in types)
        layers = Counter[str]()
        for name, block_type in types.items():
            layers[block_type] += math.prod(shapes[name]) if in_block(name) else 0
        usual = BLOCK_TYPES[max(layers, key=lambda block_type: layers[block_type])]
        size = tensor_bytes(shapes, types)
        mixture = ", ".join(f"{block_type} {counts[block_type]}" for block_type in sorted(counts))
        file = f"the file takes {size / 2**20:.1f} MiB ({mixture}; embeddings and head included)"
        return AppliedQuantization(
            method="gguf",
            code=self.options.file_type,
            bits=round(sum(BLOCK_TYPES[each].bits * count for each, count in layers.items()) / layers.total(), 2),
            block_size=usual.group,
            double_quantization=usual.weights > usual.group,
            compute_dtype=compute_dtype,
            dtypes=dtypes,
            layers_quantized=layers_quantized,
            note="; ".join(filter(None, (note, file))),
            served_bytes=size,
        )


def _checkpoint(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, str(folder), allow_pickle=False)


def _moved(weight: torch.Tensor, block_type: str) -> float:
    """Return how far sampled rows move when they are quantized, relative to their size."""
    spread = torch.linspace(0, len(weight) - 1, min(_ROWS_READ, len(weight))).long()
    rows = weight[spread.to(weight.device)].float().cpu().numpy()
    size = float(np.square(rows).mean())
    return float(np.sqrt(np.square(rows - _round_trip(rows, block_type)).mean() / size)) if size else 0.0


def _round_trip(rows: NDArray[np.float32], block_type: str) -> NDArray[np.float32]:
    """Quantize and dequantize a matrix of float32."""
    found: NDArray[np.float32] = gguf.dequantize(_blocks(rows, block_type), gguf.GGMLQuantizationType[block_type])
    return found


def _blocks(rows: NDArray[np.float32], block_type: str) -> NDArray[np.uint8]:
    """Quantize a matrix; each row becomes one row of bytes."""
    kind = gguf.GGMLQuantizationType[block_type]
    rows = np.ascontiguousarray(rows)
    block = BLOCK_TYPES[block_type]
    height, width = rows.shape
    blocks = np.empty((height, width // block.weights * block.bytes), dtype=np.uint8)
    quantize, chunk = _quantize_chunk(), _CHUNK // width + 1

    def run(first: int) -> None:
        count = min(chunk, height - first)
        quantize(int(kind), rows.ctypes.data, blocks.ctypes.data, first * width, count, width, None)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # ctypes lets other threads run meanwhile
        list(pool.map(run, range(0, height, chunk)))
    return blocks


@cache
def _quantize_chunk() -> Any:  # Any: a function of a C library
    """Open ggml's ``ggml_quantize_chunk(type, source, target, start, rows, row_width, importance) -> bytes``."""
    library = next(Path(libggml.__file__).parent.glob("lib*/libggml-base.so"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    wide, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
    function.restype = ctypes.c_size_t
    return function
