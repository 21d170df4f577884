"""The truth of captions, where a scene's facts are known: digit_scenes."""

from .evaluators import SceneCaptionEvaluator, SceneRetrievalEvaluator
from .spans import Span, mention_spans
from .truth import METRICS as TRUTH_METRICS

__all__ = ["TRUTH_METRICS", "SceneCaptionEvaluator", "SceneRetrievalEvaluator", "Span", "mention_spans"]
