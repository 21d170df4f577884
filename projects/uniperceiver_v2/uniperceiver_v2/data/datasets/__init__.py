"""Registered datasets: their names, formats and records."""
