"""A plugin of llmquant."""
