"""Any model of sentence-transformers."""
