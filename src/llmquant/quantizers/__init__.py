"""Quantizers: for each a light module of options and a heavy one that does the work."""
