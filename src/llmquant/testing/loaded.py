"""Load a tiny model or embedder for checks, as a worker does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from llmquant.models.info import ModelInfo
from llmquant.plugins.evaluator import LoadedModel
from llmquant.plugins.registry import Chosen, registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.testing.trial import Trial

if TYPE_CHECKING:
    from llmquant.retrieval.loaded import LoadedEmbedder


def baseline(name: str) -> Chosen:
    """Return a built-in baseline, such as ``fp32_baseline``."""
    return registry().choose("quantizer", Call(f"llmquant/{name}"))


def load_model(trial: Trial, quantizer: Chosen, info: ModelInfo, cache: Cache) -> LoadedModel:
    """Prepare and load a causal language model, quantized."""
    import torch

    from llmquant.loading.causal_lm import load_causal_lm, materialize
    from llmquant.loading.quantized import quantized_checkpoint

    quantizer.ask("check", info, "cpu")
    context = replace(trial.context(quantizer), cache=cache)
    (context.files / "checkpoint").mkdir()
    torch.manual_seed(context.seed)
    path = quantized_checkpoint(materialize(info, cache), info, quantizer, context)
    loaded: LoadedModel = load_causal_lm(path, info, registry().construct(quantizer), quantizer.options, context)
    shutil.rmtree(context.files, ignore_errors=True)
    return replace(loaded, row_independent=quantizer.row_independent and info.row_independent)


def load_vectors(trial: Trial, quantizer: Chosen, info: ModelInfo) -> LoadedEmbedder:
    """Open an embedder, quantized."""
    import torch

    from llmquant.loading.embedder import load_embedder

    assert info.embedder is not None  # `inspect_subject` has found an embedder
    quantizer.ask("check", info, "cpu")
    embedder = registry().construct(registry().restore("embedder", info.embedder))
    made, context = registry().construct(quantizer), trial.context(quantizer)
    torch.manual_seed(context.seed)
    loaded: LoadedEmbedder = load_embedder(info, embedder, made, quantizer.use, quantizer.options, context)
    return replace(loaded, row_independent=quantizer.row_independent)
