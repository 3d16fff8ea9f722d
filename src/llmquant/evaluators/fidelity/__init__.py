"""How far a variant's predictions are from the baseline's on the same tokens."""
