"""mteb's tasks and benchmarks."""
