"""Quanto."""
