"""No quantization."""
