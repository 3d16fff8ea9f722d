"""Evaluators: each measures a loaded variant, with light options and a heavy class in separate modules."""
