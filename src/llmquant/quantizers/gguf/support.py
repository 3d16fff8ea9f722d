"""Which models llama.cpp computes as transformers does, from configuration and tokenizer alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
from tokenizers import Tokenizer

from llmquant.errors import UnsupportedError
from llmquant.quantizers.gguf.vocabulary import check_tokenizer

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's implementation of an architecture has.

    Attributes:
        neighbours: whether RoPE turns neighbouring rows; transformers turns the first half with the second.
        biases: layers that may have a bias.
    """

    kind: gguf.MODEL_ARCH
    neighbours: bool
    biases: tuple[str, ...] = ()


_QKV = ("q_proj", "k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, True, (*_QKV, "o_proj", *_MLP)),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, False, _QKV),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, False),
}
_ROPE = ("default", "linear", "llama3")


def check_model(model: ModelInfo) -> None:
    """Check a checkpoint's own files; defaults that only transformers knows are left to the quantizer.

    Raises:
        UnsupportedError: naming what llama.cpp would do differently or cannot do.
    """
    architecture = architecture_of(model)
    check_config(model.config, architecture)
    tensor_names(model, architecture)
    path = model.file("tokenizer.json")
    if path is None:  # transformers may convert another file to a byte-level BPE
        return
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the package has no class of its own; the quantizer names the tokenizer's fault
        return
    check_tokenizer(tokenizer, model.config.get("vocab_size"))


def architecture_of(model: ModelInfo) -> Architecture:
    """Return the architecture of a model.

    Raises:
        UnsupportedError: if llama.cpp's may differ from it.
    """
    kind = model.config.get("model_type")
    if kind not in _ARCHITECTURES or (model.trust_remote_code and "auto_map" in model.config):
        said = "it runs its own code" if kind in _ARCHITECTURES else f"its model type is {kind!r}"
        raise UnsupportedError(f"{said}; supported are {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[kind]


def check_config(config: Mapping[str, Any], architecture: Architecture) -> None:  # Any: a JSON object
    """Check the settings in ``config.json``, or those that transformers completed.

    Raises:
        UnsupportedError: naming the setting that llama.cpp does not have.
    """
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise UnsupportedError(f"its activation is {activation!r}, and llama.cpp computes 'silu'")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = _ROPE if architecture.kind == gguf.MODEL_ARCH.LLAMA else _ROPE[:2]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds or rope.get("partial_rotary_factor", 1) != 1:
        raise UnsupportedError(f"its rotary settings are {dict(rope)}; supported are whole heads of {', '.join(kinds)}")
    window = config.get("sliding_window")
    # Without a list, all of Mistral's layers have the window; which of Qwen's have it, transformers works out.
    layers = config.get("layer_types") or (["sliding_attention"] if kinds is _ROPE else [])
    if window and window < config.get("max_position_embeddings", 0) and "sliding_attention" in layers:
        raise UnsupportedError(f"its attention sees {window} tokens back, and llama.cpp's sees all")


def tensor_names(model: ModelInfo, architecture: Architecture) -> dict[str, str]:
    """Return GGUF's names of a model's tensors, by their names in the checkpoint.

    Raises:
        UnsupportedError: if llama.cpp has no place for a tensor.
    """
    layers = model.config.get("num_hidden_layers", len(model.tensors))  # at most as many
    known = gguf.get_tensor_name_map(architecture.kind, layers)
    names = {tensor.name: known.get_name(tensor.name, try_suffixes=(".weight", ".bias")) for tensor in model.weights}
    for name, found in names.items():
        layer, _, part = name.rpartition(".")
        if not found or (part == "bias" and layer.rpartition(".")[2] not in architecture.biases):
            raise UnsupportedError(f"llama.cpp has no place for {name}")
    return {name: str(found) for name, found in names.items()}
