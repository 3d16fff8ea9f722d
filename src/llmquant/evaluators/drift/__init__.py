"""How far an embedder's vectors moved from the baseline's."""
