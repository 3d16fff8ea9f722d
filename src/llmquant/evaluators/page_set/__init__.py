"""Retrieval on the user's own pages and queries."""
