"""Evaluators by dataset, and one table of their results."""

from ..files import write_json
from .build import build_evaluator
from .captions import CaptionBaselines, CaptionEvaluator
from .classification import ClassificationEvaluator
from .digit_scenes import TRUTH_METRICS, SceneCaptionEvaluator, SceneRetrievalEvaluator, mention_spans
from .grounding import GroundingEvaluator
from .language_modelling import LanguageModellingEvaluator
from .proposals import ProposalEvaluator
from .question_answering import QuestionAnsweringEvaluator
from .region_captions import RegionCaptionEvaluator
from .retrieval import RetrievalEvaluator
from .segmentation import PanopticEvaluator, SemanticEvaluator
from .table import format_results_table, kind_of_metrics, result_cells

__all__ = [
    "TRUTH_METRICS",
    "CaptionBaselines",
    "CaptionEvaluator",
    "ClassificationEvaluator",
    "GroundingEvaluator",
    "LanguageModellingEvaluator",
    "PanopticEvaluator",
    "ProposalEvaluator",
    "QuestionAnsweringEvaluator",
    "RegionCaptionEvaluator",
    "RetrievalEvaluator",
    "SceneCaptionEvaluator",
    "SceneRetrievalEvaluator",
    "SemanticEvaluator",
    "build_evaluator",
    "format_results_table",
    "kind_of_metrics",
    "mention_spans",
    "result_cells",
    "write_json",
]
