"""Options of the GGUF quantizer: llama.cpp's file types, and the block type of each weight in a file type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmquant.errors import UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.plugins.quantizer import SingleFile
from llmquant.quantizers.plain_weights import plain_bytes, refuse_quantized
from llmquant.study.call import Json

FileType = Literal["q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0"]


@dataclass(frozen=True)
class BlockType:
    """How ggml stores a run of weights (ggml-common.h).

    Attributes:
        weights: weights per block; a block lies in one row.
        bytes: bytes per block, scales included.
        bits: bits of a weight's code.
        group: number of weights that share a scale; k-quants keep several such groups per block.
        error: relative root-mean-square error on normally distributed weights, measured on 512 x 1024 weights.
    """

    weights: int
    bytes: int
    bits: int
    group: int
    error: float


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q2_K": BlockType(256, 84, 2, 16, 0.297),
    "Q3_K": BlockType(256, 110, 3, 16, 0.151),
    "Q4_0": BlockType(32, 18, 4, 32, 0.0859),
    "Q4_K": BlockType(256, 144, 4, 32, 0.0714),
    "Q5_0": BlockType(32, 22, 5, 32, 0.0427),
    "Q5_1": BlockType(32, 24, 5, 32, 0.0379),
    "Q5_K": BlockType(256, 176, 5, 32, 0.0361),
    "Q6_K": BlockType(256, 210, 6, 16, 0.0177),
    "Q8_0": BlockType(32, 34, 8, 32, 0.00536),
}
# llama.cpp's replacement types for rows whose width is not a multiple of 256 (tensor_type_fallback in
# src/llama-quant.cpp).
_NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _more_bits(base: str, more: str) -> Callable[[int, int], str]:
    """Give the first and the last eighth of the layers, and every third between them, more bits."""

    def choose(layer: int, layers: int) -> str:
        eighth = layers // 8
        often = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        return more if often else base

    return choose


@dataclass(frozen=True)
class _Mixture:
    """The block type of each kind of weight in a file type (llama_tensor_get_type_impl in src/llama-quant.cpp).

    Attributes:
        base: type of all weights that no other attribute covers.
        value: type of the attention's values, by layer and number of layers.
        down: type of the projection out of the feed-forward part.
        output: type of the projection out of attention.
    """

    base: str
    value: Callable[[int, int], str] | None = None
    down: Callable[[int, int], str] | None = None
    output: str | None = None


_MIXTURES: Mapping[str, _Mixture] = {
    "q2_k": _Mixture("Q2_K", value=lambda _layer, _n: "Q3_K", down=lambda _layer, _n: "Q3_K", output="Q3_K"),
    "q3_k_m": _Mixture(
        "Q3_K",
        value=lambda layer, _n: "Q5_K" if layer < 2 else "Q4_K",
        down=lambda layer, n: "Q5_K" if layer < n // 16 else "Q4_K",
        output="Q4_K",
    ),
    "q4_0": _Mixture("Q4_0"),
    "q4_k_m": _Mixture("Q4_K", value=_more_bits("Q4_K", "Q6_K"), down=_more_bits("Q4_K", "Q6_K")),
    "q5_0": _Mixture("Q5_0"),
    "q5_k_m": _Mixture("Q5_K", value=_more_bits("Q5_K", "Q6_K"), down=_more_bits("Q5_K", "Q6_K")),
    "q6_k": _Mixture("Q6_K"),
    "q8_0": _Mixture("Q8_0"),
}
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
_VALUES = frozenset({"v_proj", "qkv_proj"})
_KNOWN = _VALUES | {"q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"}
_LAYER = re.compile(r"\.(\d+)\.")
# From this number of query heads per key-value head on, Q2_K uses four bits for the values.
_GROUPED = 4
# llama.cpp's "70B": Llama 2 and 3 70B, Qwen2 72B; llama.cpp recognizes these models by the number of layers alone.
_LAYERS_OF_70B = 80


def block_types(
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],  # Any: a JSON object
    file_type: str,
) -> dict[str, str]:
    """Choose the block type of every weight that llama.cpp quantizes, as ``llama-quantize`` without imatrix does.

    Args:
        shapes: shapes of the checkpoint's tensors, by their names in transformers.
        config: the language model's configuration.

    Returns:
        A key of `BLOCK_TYPES` per matrix, embeddings and head included; vectors stay in float32.

    Raises:
        UnsupportedError: for a matrix whose place in the file is unknown, or a width that fits no type.
    """
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    for name, shape in matrices.items():
        if "expert" in name or _kind(name) not in _KNOWN | {_EMBEDDING, _HEAD} or len(shape) != 2:
            raise UnsupportedError(
                f"the GGUF block type of {name} is unknown",
                hint="The gguf presets support models whose layers are named like Llama's, without experts.",
            )
    layers = len({_layer(name) for name in matrices if in_block(name)})
    tied = bool(config.get("tie_word_embeddings")) or not any(_kind(name) == _HEAD for name in matrices)
    chosen = {}
    for name, shape in matrices.items():
        if _kind(name) == _HEAD or (_kind(name) == _EMBEDDING and tied):
            block_type = "Q8_0" if file_type == "q8_0" else "Q6_K"
        else:
            block_type = _type(name, layers, config, file_type)
        chosen[name] = _fitting(block_type, name, shape)
    return chosen


def tensor_bytes(shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str]) -> int:
    """Add up the bytes of tensors in a file; those without a block type are stored in float32."""
    total = 0
    for name, shape in shapes.items():
        block = BLOCK_TYPES.get(types.get(name, ""))
        total += math.prod(shape) * 4 if block is None else math.prod(shape) // block.weights * block.bytes
    return total


def in_block(name: str) -> bool:
    """Return whether a weight belongs to a layer, and not to the embeddings or the head."""
    return _kind(name) in _KNOWN


def _type(name: str, layers: int, config: Mapping[str, Any], file_type: str) -> str:  # Any: a JSON object
    mixture, kind = _MIXTURES[file_type], _kind(name)
    chosen = mixture.base
    if kind in _VALUES and mixture.value:
        heads = int(config.get("num_attention_heads") or 1)
        grouped = heads // int(config.get("num_key_value_heads") or heads)
        chosen = mixture.value(_layer(name), layers)
        if file_type == "q2_k" and grouped >= _GROUPED:
            chosen = "Q4_K"
        if layers == _LAYERS_OF_70B and grouped > 1 and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
    if kind == "down_proj" and mixture.down:
        chosen = mixture.down(_layer(name), layers)
    if kind == "o_proj" and mixture.output:
        chosen = mixture.output
    return chosen


def _fitting(block_type: str, name: str, shape: tuple[int, ...]) -> str:
    if shape[1] % BLOCK_TYPES[block_type].weights:
        block_type = _NARROW.get(block_type, block_type)
    if shape[1] % BLOCK_TYPES[block_type].weights:
        raise UnsupportedError(
            f"{name} has rows of {shape[1]} weights; GGUF blocks need a multiple of 32",
            hint="Use another method, such as bnb_4bit_nf4.",
        )
    return block_type


def _kind(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class GgufOptions:
    """Weights quantized by llama.cpp's rules, run dequantized.

    Attributes:
        file_type: llama.cpp's name for the mixture of block types, for example Q4_K_M.
        dtype: type in which the dequantized weights are kept and multiplied. bfloat16 rounds the weights once more:
            their error grows by 0.03 % with Q4_K and by 5 % with Q8_0; float32 adds no error.
    """

    file_type: FileType = "q4_k_m"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse checkpoints that llama.cpp cannot quantize, or quantizes in a way unknown to llmquant.

        Raises:
            UnsupportedError: naming the reason.
        """
        refuse_quantized(model)
        if model.kind == "gguf":
            raise UnsupportedError(
                f"{model.source} is a GGUF file already", hint="Use the checkpoint that the file was made from."
            )
        if not all(name.endswith(".safetensors") for name in model.weight_files):
            raise UnsupportedError(
                f"{model.source} has weights that are not in safetensors files",
                hint="Save the model again with transformers: save_pretrained writes safetensors.",
            )
        self.served_bytes(model)

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the loaded weights, all of them dequantized."""
        return plain_bytes(model, 4 if self.dtype == "float32" else 2)

    def served_bytes(self, model: ModelInfo) -> int:
        """Predict the bytes of the tensors in the .gguf file.

        Raises:
            UnsupportedError: as `block_types`.
        """
        shapes = {tensor.name: tensor.shape for tensor in model.weights}
        return tensor_bytes(shapes, block_types(shapes, model.text_config, self.file_type))

    def check_export(self, model: ModelInfo) -> None:
        """Refuse models that llama.cpp cannot load, or would compute differently.

        Raises:
            UnsupportedError: naming the reason.
        """
        from llmquant.quantizers.gguf.support import check_model

        try:
            check_model(model)
        except UnsupportedError as error:
            raise not_exported(model, error) from error

    def single_file(self) -> SingleFile:
        return SingleFile(".gguf", "llama-server -m")

    def requests(self) -> Mapping[str, Json]:
        return {"method": "gguf", "code": self.file_type, "compute_dtype": self.dtype}


def not_exported(model: ModelInfo, reason: UnsupportedError) -> UnsupportedError:
    """Say that a model cannot be written as a .gguf file."""
    return UnsupportedError(
        f"{model.source} cannot be written as a .gguf file: {reason.message}",
        hint="llama.cpp's convert_hf_to_gguf.py and llama-quantize may support it.",
    )
