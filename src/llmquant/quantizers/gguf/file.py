"""Write a .gguf file as llama.cpp's convert_hf_to_gguf.py does: names, order of rows, metadata."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmquant.loading.causal_lm import load_tokenizer
from llmquant.quantizers.gguf.support import Architecture, architecture_of, check_config, tensor_names
from llmquant.quantizers.gguf.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class GgufPlan:
    """What will be written.

    Attributes:
        folder: the checkpoint.
        config: configuration of transformers.
        names: GGUF's names of the tensors, by their names in the checkpoint.
    """

    folder: Path
    model: ModelInfo
    architecture: Architecture
    config: Any  # Any: transformers has no types
    names: Mapping[str, str]
    vocabulary: Vocabulary


def plan_file(folder: Path, model: ModelInfo) -> GgufPlan:
    """Check that llama.cpp computes what transformers does, from configuration and tokenizer alone.

    Raises:
        UnsupportedError: naming what llama.cpp would do differently or cannot do.
    """
    architecture, config = architecture_of(model), AutoConfig.from_pretrained(folder)
    check_config(config.to_dict(), architecture)
    names = tensor_names(model, architecture)
    vocabulary = read_vocabulary(load_tokenizer(folder, model), config.vocab_size)
    return GgufPlan(folder, model, architecture, config, names, vocabulary)


def write_file(
    plan: GgufPlan,
    out: Path,
    file_type: str,
    types: Mapping[str, str],
    quantize: Callable[[NDArray[np.float32], str], NDArray[np.uint8]],
) -> Iterator[int]:
    """Write the file, with one tensor in memory at a time, and yield the number of finished tensors.

    Args:
        types: block types of the matrices, by their names in the checkpoint; other tensors are written in float32.
        quantize: turns a matrix and a block type into blocks: one row of bytes per row.
    """
    config, factors = plan.config, _rope_factors(plan.config)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with contextlib.closing(gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[plan.architecture.kind])) as writer:
        _add_metadata(writer, plan, file_type)
        plan.vocabulary.add_to(writer)
        if factors is not None:
            name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight"
            writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
        for tensor in plan.model.weights:
            kind = gguf.GGMLQuantizationType[types.get(tensor.name, "F32")]
            size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, kind))
            writer.add_tensor_info(plan.names[tensor.name], tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, (name, values) in enumerate(_read(plan.folder, plan.model), start=1):
            rows: NDArray[Any] = quantize(values, types[name]) if name in types else values  # Any: bytes or numbers
            layer = name.rpartition(".")[0].rpartition(".")[2]
            if plan.architecture.neighbours and layer in heads:
                halves = rows.reshape(heads[layer], 2, -1, *rows.shape[1:])
                rows = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
            writer.write_tensor_data(rows)
            yield done


def _add_metadata(writer: gguf.GGUFWriter, plan: GgufPlan, file_type: str) -> None:
    config, model = plan.config, plan.model
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(model.use().name.rpartition("/")[2])
    card = model.file("README.md")
    with contextlib.suppress(yaml.YAMLError):  # the licence cannot be read from a damaged model card
        licence = gguf.Metadata.load_model_card(card and card.parent).get("license")
        if isinstance(licence, str):
            writer.add_license(licence)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{file_type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    writer.add_rope_dimension_count(_head_width(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _head_width(config: Any) -> int:  # Any: transformers has no types
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_factors(config: Any) -> NDArray[np.float32] | None:  # Any: transformers has no types
    """Return by what llama.cpp divides the rotary frequencies; ``None`` for nothing."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    width = _head_width(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors: NDArray[np.float32] = (plain / scaled).numpy()
    return factors


def _read(folder: Path, model: ModelInfo) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the model's tensors in order, each read when it is needed."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in model.weight_files]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        for tensor in model.weights:
            yield tensor.name, places[tensor.name].get_tensor(tensor.name).float().numpy()
