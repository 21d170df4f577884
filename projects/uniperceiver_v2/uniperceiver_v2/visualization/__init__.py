"""Pictures of predictions."""

from .caption_sheet import draw_caption_sheet, text_block
from .cards import Answers, Mark, Panel, draw_card, draw_marks, draw_sheet, fitted
from .draw import draw_detections
from .scenes import draw_test_scenes, scene_picture

__all__ = [
    "Answers",
    "Mark",
    "Panel",
    "draw_caption_sheet",
    "draw_card",
    "draw_detections",
    "draw_marks",
    "draw_sheet",
    "draw_test_scenes",
    "fitted",
    "scene_picture",
    "text_block",
]
