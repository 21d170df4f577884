"""Pictures of predictions."""

from .caption_sheet import draw_caption_sheet, text_block
from .draw import draw_detections
from .scenes import draw_test_scenes, scene_picture

__all__ = ["draw_caption_sheet", "draw_detections", "draw_test_scenes", "scene_picture", "text_block"]
