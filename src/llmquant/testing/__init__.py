"""Checks for the tests of plugin packages, and tiny models to run plugins on."""

from llmquant.testing.models import tiny_causal_lm, tiny_embedder
from llmquant.testing.suite import CHECKS, Check, Outcome, checks, outcomes

__all__ = ["CHECKS", "Check", "Outcome", "checks", "outcomes", "tiny_causal_lm", "tiny_embedder"]
