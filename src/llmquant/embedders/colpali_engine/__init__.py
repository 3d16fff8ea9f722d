"""ColPali and its relatives."""
