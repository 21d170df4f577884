"""Mappers: they turn a dataset's record into a task's sample."""
