"""Random vectors: the floor of every retrieval score."""
