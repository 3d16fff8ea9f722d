"""Catalogues of existing tasks, read without importing lm-eval or mteb."""
