"""The lines with which a variant is used: loaded, written as a checkpoint, served."""

from __future__ import annotations

import shlex
from pathlib import Path

from llmquant.errors import LlmquantError
from llmquant.models.folder import read_checkpoint
from llmquant.models.info import ModelInfo, is_path
from llmquant.plugins.quantizer import SingleFile
from llmquant.plugins.registry import registry
from llmquant.results.rows import label
from llmquant.study.experiment import ModelUse, Variant, path_of
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
    use, quantizer = variant.model, variant.quantizer
    source, flags = use.source, use.flags
    if use.embedder is not None:
        return (f'lq.load_embedder("{use.embedder.label}", "{quantizer.label}")',)
    asked = ", ".join([f'"{source}"', *(f"{flag}=True" for flag in flags)])
    asked = f"lq.ModelRequest({asked})" if flags else asked
    in_python = f'lq.load({asked}, "{quantizer.label}").module'
    trust = "trust_remote_code" in flags
    keywords = f'{", trust_remote_code=True" * trust}, device_map="auto")'
    if quantizer.plugin == _BASELINE and not source.endswith(".gguf"):
        dtype = quantizer.options.get("dtype")
        name, _, revision = (source, "", "") if is_path(source) else source.partition("@")
        at = f', revision="{revision}"' if revision else ""
        serve = ["vllm", "serve", name, *(["--revision", revision] if revision else []), "--dtype", str(dtype)]
        return (
            f'AutoModelForCausalLM.from_pretrained("{name}"{at}, dtype="{dtype}"{keywords}',
            shlex.join([*serve, *["--trust-remote-code"] * trust]),
        )
    try:
        chosen = registry().restore("quantizer", quantizer)
        chosen.ask("check_save", "cpu")
        single: SingleFile | None = chosen.ask("single_file")
        if single is not None and registry().missing(chosen.plugin) is None and (info := _read_here(use)) is not None:
            chosen.ask("check_export", info)
        serving: str | None = chosen.ask("serving")
    except LlmquantError:  # the plugin is not installed here, or the weights cannot be saved
        return (in_python,)
    folder = f"{Path(source).name.partition('@')[0]}-{quantizer.label.partition('(')[0]}"
    target = folder + (single.suffix if single is not None else "")
    allowed = [f"--{flag.replace('_', '-')}" for flag in flags]
    write = shlex.join(["llmquant", "quantize", source, "-q", quantizer.label, "-o", target, *allowed])
    if single is not None:
        return (write, f"{single.command} {shlex.quote(target)}")
    lines = [write, f'AutoModelForCausalLM.from_pretrained("{folder}"{keywords}']
    if serving is not None:
        command = shlex.join(["vllm", "serve", folder, *["--trust-remote-code"] * trust])
        lines.append(command + (f"  # pip install {serving}" if serving else ""))
    return tuple(lines)


def _read_here(use: ModelUse) -> ModelInfo | None:
    """Describe a model from its files, without asking the Hub; ``None`` if they are not on this machine."""
    folder: Path | None = path_of(use.source)
    if use.digest.startswith("commit:"):
        from huggingface_hub import try_to_load_from_cache

        repo, commit = use.source.partition("@")[0], use.digest.removeprefix("commit:")
        found = try_to_load_from_cache(repo, "config.json", revision=commit)
        folder = Path(found).parent if isinstance(found, str) else None
    if folder is None or not folder.is_dir():
        return None
    read = read_checkpoint(folder, use.source, allow_pickle="allow_pickle" in use.flags)
    return ModelInfo(use.source, use.digest, use.flags, "folder", folder, **vars(read))
