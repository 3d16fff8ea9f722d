"""What is asked and what came out, as plain data."""
