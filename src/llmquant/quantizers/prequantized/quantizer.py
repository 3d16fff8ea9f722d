"""Load a checkpoint quantized outside llmquant in place of the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from llmquant.errors import ModelError, NotHonouredError
from llmquant.loading.causal_lm import materialize
from llmquant.models.info import inspect_model
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.plugins.registry import registry
from llmquant.quantizers.gptqmodel.layers import read_gptqmodel_layers
from llmquant.quantizers.gptqmodel.options import CPU_GROUPS_4_BIT
from llmquant.quantizers.gptqmodel.quantizer import loaded_dtype
from llmquant.quantizers.gptqmodel.settings import prepare_environment
from llmquant.quantizers.prequantized.options import (
    PrequantizedOptions,
    plugin_of,
    quantization_settings,
)
from llmquant.study.experiment import ModelRequest

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# The note of checkpoints that llmquant writes.
_OURS = "round to nearest, no calibration"
_STANDARD = "model.safetensors"
# GPTQModel's kernels that unpack the weights in every pass.
_UNPACKING = {"gptq": "gptq_torch", "awq": "torch_awq"}


class Prequantized(Quantizer[PrequantizedOptions]):
    """Loads the checkpoint instead of the model, and reads back its quantization."""

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        return _fetch(self.options, ctx)[0]

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        folder, settings = _fetch(self.options, ctx)
        chosen = plugin_of(settings)
        if chosen is not None:
            registry().target(chosen.plugin)  # importing it registers its format with transformers
        config = AutoConfig.from_pretrained(folder)
        # The model decides the attention implementation for all of its variants.
        config._attn_implementation = AutoConfig.from_pretrained(materialize(model, ctx.cache))._attn_implementation
        method = settings.get("quant_method")
        if method in _UNPACKING:
            prepare_environment(ctx.device)
            # By default GPTQModel selects a kernel that raises in the first pass, or ignores the zero points.
            if ctx.device == "cpu" and settings.get("group_size", 128) not in CPU_GROUPS_4_BIT:
                settings = {**settings, "backend": _UNPACKING[method]}
        config.quantization_config = dict(settings)
        return {"dtype": loaded_dtype(self.options.dtype, ctx.device), "config": config}

    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        settings = _settings(module)
        if settings["quant_method"] == "bitsandbytes" and settings.get("load_in_4bit"):
            from llmquant.quantizers.bitsandbytes.quantizer import settle_4bit  # imports the backend, as below

            settle_4bit(module, to_save=to_save)

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        found = _read(module)
        notes = [part for part in found.note.split("; ") if part and part != _OURS]
        return replace(found, note="; ".join(["quantized elsewhere", *notes]))


def _fetch(options: PrequantizedOptions, ctx: Context) -> tuple[Path, Mapping[str, Any]]:  # Any: a JSON object
    """Return the checkpoint's folder, with its weights where transformers looks for them, and its settings."""
    checkpoint = options.checkpoint
    info = inspect_model(ModelRequest(checkpoint.source(ctx.inputs)), ctx.cache)
    if info.digest != checkpoint.digest:
        raise ModelError(
            f"{checkpoint.name} changed since the study was planned",
            hint="Run the same command again to evaluate the checkpoint in its present state.",
        )
    folder, settings = materialize(info, ctx.cache), quantization_settings(info)
    (weights, *others) = info.weight_files
    if others or not weights.startswith("gptq_model-"):
        return folder, settings

    def link(out: Path) -> None:
        for path in folder.iterdir():
            (out / (_STANDARD if path.name == weights else path.name)).symlink_to(path.resolve())

    key = {"folder": str(folder), "digest": info.digest}
    return ctx.cache.get("prequantized", key, link, name=info.use().name), settings


def _settings(module: Any) -> dict[str, Any]:  # Any: a PreTrainedModel; a JSON object
    found = module.config.quantization_config
    settings = found if isinstance(found, dict) else found.to_dict()
    return {**settings, "quant_method": getattr(settings["quant_method"], "value", settings["quant_method"])}


def _read(module: Any) -> AppliedQuantization:  # Any: a PreTrainedModel
    settings = _settings(module)
    method = settings["quant_method"]
    chosen = plugin_of(settings)
    if chosen is not None:
        applied: AppliedQuantization = registry().construct(chosen).applied(module)
        return applied
    # Each of these functions imports its backend, and only one is needed.
    if method == "bitsandbytes":
        from llmquant.quantizers.bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions
        from llmquant.quantizers.bitsandbytes.quantizer import Bnb4bit, Bnb8bit

        if settings.get("load_in_8bit"):
            return Bnb8bit(Bnb8bitOptions(threshold=settings["llm_int8_threshold"])).applied(module)
        return Bnb4bit(Bnb4bitOptions()).applied(module)
    if method == "compressed-tensors":
        from llmquant.quantizers.compressed_tensors.options import CompressedTensorsOptions
        from llmquant.quantizers.compressed_tensors.quantizer import CompressedTensors

        return CompressedTensors(CompressedTensorsOptions()).applied(module)
    if method in _UNPACKING:
        return read_gptqmodel_layers(module)
    raise NotHonouredError(f"llmquant cannot read back weights quantized by {method!r}")
