"""Embedders: a light module of options and a heavy one for each backend."""
