"""Vectors by chance: the floor of every retrieval score."""
