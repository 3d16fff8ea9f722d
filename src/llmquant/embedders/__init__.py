"""Embedders: each backend has a light module of options and a heavy module that does the work."""
