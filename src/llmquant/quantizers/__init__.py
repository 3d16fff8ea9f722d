"""Quantizers: each has a light module with its options and a heavy module that does the work."""
