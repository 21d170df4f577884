"""Evaluators by dataset, and one table of their results."""

from .build import build_evaluator
from .classification import ClassificationEvaluator
from .table import format_results_table

__all__ = ["ClassificationEvaluator", "build_evaluator", "format_results_table"]
