"""The tasks and benchmarks of mteb."""
