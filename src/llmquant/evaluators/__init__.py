"""Evaluators: each measures a loaded variant; the light options apart from the heavy class."""
