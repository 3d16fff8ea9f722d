"""A tiny random sentence-transformers model with a tokenizer of its own; it needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmquant.testing import tiny_embedder


def save_tiny_sentence_transformer(
    folder: Path,
    *,
    dense: int | None = None,
    prompts: Mapping[str, str] | None = None,
    similarity: str | None = None,
) -> Path:
    """Write a BERT of 2 layers and 32 numbers with mean pooling to `folder`; equal bytes every time.

    Args:
        dense: adds a dense module that gives so many numbers.
        prompts: by name, as the model's configuration holds them.
        similarity: that it says its vectors are compared by.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    base = tiny_embedder(folder.with_name(f"{folder.name}-base"))
    modules = [Transformer(str(base)), Pooling(32)]
    if dense is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            modules.append(Dense(32, dense))
    model = SentenceTransformer(
        modules=modules, prompts=dict(prompts or {}), similarity_fn_name=similarity, device="cpu"
    )
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
