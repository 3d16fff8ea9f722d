"""From a study to experiments: look up, refuse, estimate."""
