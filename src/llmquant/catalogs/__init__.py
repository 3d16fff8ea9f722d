"""Which tasks exist, without importing lm-eval or mteb."""
