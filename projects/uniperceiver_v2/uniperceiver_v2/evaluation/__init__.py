"""Evaluators by dataset, and one table of their results."""

from ..files import write_json
from .build import build_evaluator
from .captions import CaptionBaselines, CaptionEvaluator
from .classification import ClassificationEvaluator
from .language_modelling import LanguageModellingEvaluator
from .retrieval import RetrievalEvaluator
from .table import format_results_table

__all__ = [
    "CaptionBaselines",
    "CaptionEvaluator",
    "ClassificationEvaluator",
    "LanguageModellingEvaluator",
    "RetrievalEvaluator",
    "build_evaluator",
    "format_results_table",
    "write_json",
]
