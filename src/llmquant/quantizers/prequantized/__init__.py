"""Checkpoints quantized outside llmquant."""
