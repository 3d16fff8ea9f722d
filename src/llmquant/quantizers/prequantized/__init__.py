"""Checkpoints that somebody else quantized."""
