"""The distance of an embedder's vectors from the baseline's."""
