"""Retrieval from items to rankings: encoding with a cache on disk, vector forms, and exact search."""
