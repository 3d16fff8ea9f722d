"""Results of other programs as runs of a store: lm-eval, mteb and llama.cpp's perplexity."""
