"""Add a LoRA adapter to the weights of its base and write an ordinary checkpoint."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmquant.errors import ModelError
from llmquant.models.folder import read_json

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_PROCESSOR_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_NOT_PROCESSOR = ("config.json", "adapter_config.json", "generation_config.json")


def merge_lora(
    module: Any,  # Any: a model of transformers
    base: Path,
    adapter: Path,
    out: Path,
    *,
    renames: Mapping[str, str],
) -> None:
    """Write `module` with the adapter added, and the tokenizer and processor files: the adapter's before the base's.

    ``W + (alpha / r) B A`` is computed in float32 and rounded once to the type that `module` is loaded in. (Hu et al.,
    2021, https://arxiv.org/abs/2106.09685)

    Args:
        module: the base; its weights are changed.
        base: its folder.
        renames: regular expressions from older names of modules to those of `module`.

    Raises:
        ModelError: if the adapter is no plain LoRA, is damaged, or names modules that `module` does not have.
    """
    config = read_json(adapter / "adapter_config.json")
    _check_kind(config, adapter.name)
    try:
        tensors = load_file(adapter / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{adapter.name}/{_WEIGHTS} cannot be read: {error}") from error
    weights = dict(module.named_parameters())
    downs = {name for name in tensors if name.endswith(".lora_A.weight")}
    ups = {name.removesuffix(".lora_A.weight") + ".lora_B.weight" for name in downs}
    whole = tensors.keys() - downs - ups  # of `modules_to_save`: trained themselves, and stored whole
    if missing := sorted(ups - tensors.keys()):
        raise ModelError(f"{adapter.name} lacks {missing[0]!r}")
    for name in sorted(downs):
        stem = name.removesuffix(".lora_A.weight")
        weight = _find(weights, f"{stem}.weight", renames, adapter.name)
        down, up = tensors[name].float(), tensors[f"{stem}.lora_B.weight"].float()
        change = _scale(config, stem.removeprefix(_PREFIX), down.shape[0]) * (up @ down)
        _replace(weight, weight.data.float() + change, name, adapter.name)
    for name in sorted(whole):
        _replace(_find(weights, name, renames, adapter.name), tensors[name], name, adapter.name)
    module.save_pretrained(out)
    for folder in (base, adapter):
        for pattern in _PROCESSOR_FILES:
            for file in folder.glob(pattern):
                if file.name not in _NOT_PROCESSOR and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, out / file.name)


def _check_kind(config: Mapping[str, Any], name: str) -> None:  # Any: a JSON object
    kind = str(config.get("peft_type", ""))
    extra = [key for key in ("use_dora", "fan_in_fan_out", "lora_bias") if config.get(key)]
    if kind != "LORA" or extra or config.get("bias", "none") != "none":
        what = ", ".join([kind, *extra, f"bias={config.get('bias', 'none')}"])
        raise ModelError(
            f"{name} is an adapter of another kind than plain LoRA: {what}",
            hint="Merge it with peft (merge_and_unload), save it, and give that folder.",
        )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:  # Any: a JSON object
    """Return ``alpha / r``, or ``alpha / sqrt(r)`` with rank stabilization; a module may have an alpha of its own."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _find(
    weights: Mapping[str, torch.nn.Parameter], stored: str, renames: Mapping[str, str], adapter: str
) -> torch.nn.Parameter:
    name = stored.removeprefix(_PREFIX)
    candidates = [name, *(re.sub(old, new, name) for old, new in renames.items())]
    for candidate in candidates:
        if candidate in weights:
            return weights[candidate]
    raise ModelError(
        f"{adapter} changes {name!r}, which its base does not have",
        hint="It belongs to another model than its adapter_config.json says.",
    )


def _replace(weight: torch.nn.Parameter, value: torch.Tensor, name: str, adapter: str) -> None:
    if weight.shape != value.shape:
        raise ModelError(f"{adapter}: {name!r} has shape {tuple(value.shape)}, and its base {tuple(weight.shape)}")
    weight.data = value.to(weight.dtype)
