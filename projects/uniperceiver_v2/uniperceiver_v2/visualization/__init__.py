"""Pictures of predictions."""

from .draw import draw_detections
from .scenes import draw_test_scenes

__all__ = ["draw_detections", "draw_test_scenes"]
