"""llama.cpp's block formats."""
