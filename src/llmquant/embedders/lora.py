"""Add a LoRA adapter to the weights of its base, with peft, and write an ordinary checkpoint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    Each weight is computed in float32 and rounded once to the type that `module` is loaded in.

    Args:
        module: the base; its weights are changed.
        base: its folder.
        renames: regular expressions from older names of modules to those of `module`.

    Raises:
        ModelError: if the adapter is no LoRA, is damaged, or names modules that `module` does not have.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = _adapted(module, adapter, renames)
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            weights = layer.get_base_layer()
            dtype = weights.weight.dtype
            weights.float()
            layer.merge()
            weights.to(dtype)
    adapted.unload().save_pretrained(out)
    for folder in (base, adapter):
        for pattern in _PROCESSOR_FILES:
            for file in folder.glob(pattern):
                if file.name not in _NOT_PROCESSOR and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, out / file.name)


def _adapted(module: Any, adapter: Path, renames: Mapping[str, str]) -> Any:  # Any: models of transformers and of peft
    import peft

    if (kind := read_json(adapter / "adapter_config.json").get("peft_type")) != "LORA":
        raise ModelError(
            f"{adapter.name} is an adapter of another kind than LoRA: {kind}",
            hint="Merge it with peft (merge_and_unload), save it, and give that folder.",
        )
    config = peft.PeftConfig.from_pretrained(str(adapter))
    try:
        stored = load_file(adapter / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{adapter.name}/{_WEIGHTS} cannot be read: {error}") from error
    modules = dict(module.named_modules())
    tensors, today, targets = {}, {}, set()
    for key, tensor in stored.items():
        named, lora, rest = key.removeprefix(_PREFIX).partition(".lora_")
        if not lora:  # of `modules_to_save`: trained itself, and stored whole
            named, _, rest = named.rpartition(".")
        today[named] = _find(modules, named, renames, adapter.name)
        tensors[f"{_PREFIX}{today[named]}{lora or '.'}{rest}"] = tensor
        if lora:
            targets.add(today[named])
    config.target_modules = "|".join(map(re.escape, sorted(targets)))
    for patterns in (config.rank_pattern, config.alpha_pattern):
        for named in today.keys() & patterns.keys():
            patterns[today[named]] = patterns.pop(named)
    adapted = peft.get_peft_model(module, config)
    try:
        loaded = peft.set_peft_model_state_dict(adapted, tensors)
    except RuntimeError as error:  # another shape
        raise ModelError(f"{adapter.name} does not fit its base: {error}") from error
    lacking = [key for key in loaded.missing_keys if "lora_" in key or "modules_to_save" in key]
    if wrong := [*loaded.unexpected_keys, *lacking]:
        raise ModelError(f"{adapter.name} {'lacks' if wrong == lacking else 'holds'} {wrong[0]!r}")
    return adapted


def _find(modules: Mapping[str, Any], stored: str, renames: Mapping[str, str], adapter: str) -> str:
    # Any: modules of torch
    for name in (stored, *(re.sub(old, new, stored) for old, new in renames.items())):
        if name in modules:
            return name
    raise ModelError(
        f"{adapter} changes {stored!r}, which its base does not have",
        hint="It belongs to another model than its adapter_config.json says.",
    )
