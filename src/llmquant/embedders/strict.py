"""Strict loading for embedders: `load_strict`, and the weights that an embedder does not need."""

from __future__ import annotations

from llmquant.loading.strict import check_strict, load_strict

# A language model's output layer, which produces no vectors: an embedder opened without it is complete.
HEAD = r"(.*\.)?lm_head\.(weight|bias)"

__all__ = ["HEAD", "check_strict", "load_strict"]
