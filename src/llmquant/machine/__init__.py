"""What this machine is, and where numbers came from."""
