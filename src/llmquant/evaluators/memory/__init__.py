"""What a loaded variant holds in memory, and its peaks."""
