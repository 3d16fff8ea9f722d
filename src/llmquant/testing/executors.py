"""Checks of executors."""

CHECKS = ()
