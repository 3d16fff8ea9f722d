"""Studies, experiments and runs as plain data."""
