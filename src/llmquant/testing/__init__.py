"""Checks for the tests of plugin packages, tiny models to run plugins on, and small real models and questions."""

from llmquant.testing.demo_data import demo_data, demo_embedder, demo_model
from llmquant.testing.models import tiny_causal_lm, tiny_embedder
from llmquant.testing.suite import CHECKS, Check, Outcome, checks, outcomes

__all__ = [
    "CHECKS",
    "Check",
    "Outcome",
    "checks",
    "demo_data",
    "demo_embedder",
    "demo_model",
    "outcomes",
    "tiny_causal_lm",
    "tiny_embedder",
]
