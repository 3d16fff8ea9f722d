"""Intervals and verdicts: pure numpy and scipy."""
