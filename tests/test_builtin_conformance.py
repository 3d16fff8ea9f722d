"""The built-in plugins pass the checks that plugin packages use."""

from __future__ import annotations

from pathlib import Path

from llmquant.plugins.registry import registry
from llmquant.testing import checks


def _spec(kind, name):
    return registry().find(kind, name)[0].spec


_TEXT = Path(__file__).parents[1] / "docs" / "glossary.md"

test_baseline = checks(_spec("quantizer", "baseline"), "fp32_baseline")
test_bnb_4bit = checks(_spec("quantizer", "bnb_4bit"), "bnb_4bit_nf4")
test_perplexity = checks(_spec("evaluator", "perplexity"), f"perplexity({_TEXT})")
test_random = checks(_spec("embedder", "random"))
