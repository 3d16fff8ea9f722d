"""Any model of mteb's."""
