"""Retrieval on pages and queries of one's own."""
