"""Loads that show a fault only by their number: scripts that print a row of figures, and shorter runs as tests."""
