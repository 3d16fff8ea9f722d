"""lm-eval's tasks."""
