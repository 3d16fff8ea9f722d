"""The lines with which a variant is used: loaded, written as a checkpoint, served."""

from __future__ import annotations

import shlex
from pathlib import Path

from llmquant.errors import LlmquantError
from llmquant.plugins.registry import registry
from llmquant.results.rows import label
from llmquant.study.experiment import Variant
from llmquant.study.record import StudyRecord

_BASELINE = "llmquant/baseline"


def usage(record: StudyRecord, model_digest: str) -> dict[str, tuple[str, ...]]:
    """Return the lines for each variant of a model, by label."""
    found: dict[str, tuple[str, ...]] = {}
    for experiment in record.experiments:
        variant = experiment.variant
        if variant.model.digest == model_digest:
            found.setdefault(label(record, variant), _lines(variant))
    return found


def _lines(variant: Variant) -> tuple[str, ...]:
    source, quantizer = variant.model.source, variant.quantizer
    if variant.model.embedder is not None:
        return (f'lq.load_embedder("{variant.model.embedder.label}", "{quantizer.label}")',)
    in_python = f'lq.load("{source}", "{quantizer.label}").module'
    if quantizer.plugin == _BASELINE and not source.endswith(".gguf"):
        dtype = quantizer.options.get("dtype")
        model = f'AutoModelForCausalLM.from_pretrained("{source}", dtype="{dtype}", device_map="auto")'
        return (model, f"vllm serve {shlex.quote(source)} --dtype {dtype}")
    try:
        options = registry().restore("quantizer", quantizer).options
        if hasattr(options, "check_save"):
            options.check_save("cpu")
    except LlmquantError:  # the plugin is not installed here, or the weights cannot be saved
        return (in_python,)
    single = options.single_file() if hasattr(options, "single_file") else None
    folder = f"{Path(source).name.partition('@')[0]}-{quantizer.label.partition('(')[0]}"
    serving: str | None = options.serving() if hasattr(options, "serving") else None
    if single is not None:
        file = folder + single.suffix
        write = shlex.join(["llmquant", "quantize", source, "-q", quantizer.label, "-o", file])
        return (write, f"{single.command} {shlex.quote(file)}")
    lines = [shlex.join(["llmquant", "quantize", source, "-q", quantizer.label, "-o", folder])]
    lines.append(f'AutoModelForCausalLM.from_pretrained("{folder}", device_map="auto")')
    if serving is not None:
        lines.append(f"vllm serve {shlex.quote(folder)}" + (f"  # pip install {serving}" if serving else ""))
    return tuple(lines)
