"""The truth of captions, where a scene's facts are known: digit_scenes."""

from .evaluators import SceneCaptionEvaluator, SceneRetrievalEvaluator
from .truth import METRICS as TRUTH_METRICS

__all__ = ["TRUTH_METRICS", "SceneCaptionEvaluator", "SceneRetrievalEvaluator"]
