"""Any model of mteb."""
