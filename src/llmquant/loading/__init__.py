"""Loading of models onto their device, quantized and checked; no other package loads models."""
