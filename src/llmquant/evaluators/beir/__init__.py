"""Retrieval on a text corpus in BEIR's format."""
