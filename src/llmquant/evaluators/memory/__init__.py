"""The memory of a loaded variant, and its peaks."""
