"""The truth of captions, where a scene's facts are known: digit_scenes."""

from .evaluators import SceneCaptionEvaluator, SceneRetrievalEvaluator
from .facts import Scene, SceneFacts
from .spans import Span, mention_spans
from .truth import METRICS as TRUTH_METRICS
from .truth import judge

__all__ = [
    "TRUTH_METRICS",
    "Scene",
    "SceneCaptionEvaluator",
    "SceneFacts",
    "SceneRetrievalEvaluator",
    "Span",
    "judge",
    "mention_spans",
]
