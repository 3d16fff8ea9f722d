"""Checks for the tests of plugin packages: call them with your specs and a small checkpoint."""

from llmquant.testing.conformance import check_embedder, check_evaluator, check_quantizer, check_spec

__all__ = ["check_embedder", "check_evaluator", "check_quantizer", "check_spec"]
