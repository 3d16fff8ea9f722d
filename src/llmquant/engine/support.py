"""The models whose shared prefixes can be read once; all others keep lm-eval's forward passes."""

from __future__ import annotations

import inspect
from typing import Any

# Types whose attention takes a ready mask and explicit positions; each was compared with its plain forward pass.
MODEL_TYPES = """
apertus arcee codegen cohere cohere2 ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 gpt2 gpt_neox gpt_oss gptj
granite granitemoe helium llama ministral mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 phimoe qwen2
qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2
"""
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def why_not(module: Any, *, row_independent: bool) -> str:  # Any: transformers has no types
    """Return why a model's shared prefixes cannot be read once; ``""`` if they can.

    Args:
        module: a causal language model.
        row_independent: whether documents in a batch do not change each other's results.
    """
    config = module.config
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if not row_independent:
        return "documents in a batch affect each other"
    if config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if config.model_type not in MODEL_TYPES.split() or not type(module).__module__.startswith("transformers."):
        return f"models of type {config.model_type} are not supported"
    if kinds:
        return f"the model has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "attention_chunk_size", None):
        return "the model attends in chunks"
    if getattr(config, "use_bidirectional_attention", False):
        return "the model's attention is bidirectional"
    if config._attn_implementation not in {"sdpa", "eager"}:
        return f"the attention implementation {config._attn_implementation} does not take a mask"
    return ""


def cache_name(module: Any) -> str:  # Any: transformers has no types
    """Return what a model calls its key-value cache, as an argument and as an output.

    transformers 5.24 renamed ``past_key_values`` to ``cache``; models with code of their own keep the old name.
    """
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
