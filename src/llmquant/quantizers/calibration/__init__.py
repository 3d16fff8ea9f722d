"""Calibration texts for the quantizers that need them."""
