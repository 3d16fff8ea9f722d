"""Intervals and verdicts, computed with numpy and scipy only."""
