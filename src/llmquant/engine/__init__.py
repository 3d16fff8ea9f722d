"""Scores many texts with few forward passes: what texts share is read once, and lm-eval's results are reproduced."""
