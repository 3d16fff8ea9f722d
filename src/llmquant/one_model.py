"""One quantized model in this process: loaded for a notebook, or written as a checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmquant.api import Model, Plugin, make_study, open_executor
from llmquant.cache import Cache
from llmquant.call import Call
from llmquant.experiment import Documents
from llmquant.models import ModelInfo
from llmquant.plan import resolve
from llmquant.plugins.registry import Chosen, registry
from llmquant.protocols import AppliedQuantization, Context, LoadedModel


def load(model: Model, quantizer: Plugin = "bf16_baseline", *, device: str = "auto", seed: int = 0) -> LoadedModel:
    """Load a causal language model in this process, quantized.

    Raises:
        RequestError: if the model or the quantizer is wrong.
        NotHonouredError: if what was loaded is not what was asked for.
    """
    from llmquant.loading import load_causal_lm, materialize

    info, chosen, context = _checked(model, quantizer, device, seed)
    heavy = registry().construct(chosen)
    path = heavy.prepare(materialize(info, context.cache), context.files / "checkpoint", context)
    return load_causal_lm(path, info, heavy, chosen.options, context)


def quantize(
    model: Model, quantizer: Plugin, out: str | Path, *, device: str = "auto", seed: int = 0
) -> AppliedQuantization:
    """Write a quantized checkpoint that plain ``transformers`` loads.

    Args:
        out: a folder that does not exist yet, or is empty.

    Returns:
        What is in its weights.

    Raises:
        RequestError: if the model, the quantizer or the folder is wrong.
    """
    from llmquant.loading import quantize as write_checkpoint

    info, chosen, context = _checked(model, quantizer, device, seed)
    return write_checkpoint(info, registry().construct(chosen), chosen.options, Path(out).expanduser(), context)


def _checked(model: Model, quantizer: Plugin, device: str, seed: int) -> tuple[ModelInfo, Chosen, Context]:
    """Check one model and quantizer as a study would, for work in this process."""
    cache = Cache.default()
    with open_executor(f"local(device={device})") as executor:
        study = make_study(model, [quantizer], ["memory"], baseline=str(Call.of(quantizer)), seed=seed)
        planned = resolve(study, registry(), cache, executor)
    (info,) = planned.models.values()
    (chosen,) = planned.quantizers
    files = Path(tempfile.mkdtemp(prefix="llmquant-"))
    context = Context(executor.device, seed, Documents(), cache, planned.inputs, None, files, lambda done, total: None)
    return info, chosen, context
