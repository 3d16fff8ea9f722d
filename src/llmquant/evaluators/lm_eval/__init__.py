"""The tasks of lm-eval."""
