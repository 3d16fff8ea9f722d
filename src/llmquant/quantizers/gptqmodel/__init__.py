"""GPTQ, AWQ and rounding, through GPTQModel."""
