"""ColPali and related models."""
