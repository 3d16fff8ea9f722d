"""A loaded model for tests of evaluators, loaded by transformers alone so that no quantizer is tested beside them."""

from __future__ import annotations

from pathlib import Path

from llmquant.plugins.evaluator import LoadedModel, LoadStats
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from llmquant.study.job import Device


def load_subject(path: Path, cache: Cache, *, device: Device = "cpu", peak_bytes: int | None = 1) -> LoadedModel:
    """Load the checkpoint at `path` in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmquant.models.info import inspect_model

    return LoadedModel(
        module=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device),
        tokenizer=AutoTokenizer.from_pretrained(path),
        info=inspect_model(ModelRequest(str(path)), cache),
        applied=AppliedQuantization("none", "float32", 32, "float32", {"float32": 1}, 0),
        path=path,
        device=device,
        load=LoadStats(1.0, peak_bytes),
    )
