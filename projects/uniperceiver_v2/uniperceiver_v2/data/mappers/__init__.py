"""Mappers: from a dataset's record to the sample that a task takes."""
