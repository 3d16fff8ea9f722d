"""A complete plugin package for llmquant: one quantizer and one evaluator."""
