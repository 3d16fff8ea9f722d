"""From experiments to runs: the scheduler here, the worker in its own process."""
