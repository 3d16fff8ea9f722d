"""compressed-tensors' schemes."""
