"""What embedders load checkpoints with: `load_strict`, and what a model that gives vectors does not need."""

from __future__ import annotations

from llmquant.loading.strict import check_strict, load_strict

# A language model's output layer: it gives no vectors, so a model opened without it lacks nothing.
HEAD = r"(.*\.)?lm_head\.(weight|bias)"

__all__ = ["HEAD", "check_strict", "load_strict"]
