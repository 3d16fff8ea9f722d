"""A loaded model for tests of evaluators, loaded by transformers alone so that no quantizer is tested beside them."""

from __future__ import annotations

from pathlib import Path

from llmquant.cache import Cache
from llmquant.experiment import ModelRequest
from llmquant.protocols import AppliedQuantization, Device, LoadedModel, LoadStats


def load_subject(path: Path, cache: Cache, *, device: Device = "cpu", peak_bytes: int | None = 1) -> LoadedModel:
    """Load the checkpoint at `path` in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmquant.models import inspect_model

    return LoadedModel(
        module=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device),
        tokenizer=AutoTokenizer.from_pretrained(path),
        info=inspect_model(ModelRequest(str(path)), cache),
        applied=AppliedQuantization("none", "float32", 32, None, False, "float32", {"float32": 1}, 0),
        path=path,
        device=device,
        load=LoadStats(1.0, peak_bytes),
    )
