"""Registered datasets: names, formats and records."""
