"""GPTQ, AWQ and round-to-nearest, through GPTQModel."""
