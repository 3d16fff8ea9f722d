"""Page images read by OCR, then embedded as text."""
