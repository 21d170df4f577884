from .feed_forward import DenseFeedForward
from .segments import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    Attributes,
    Segment,
    TaskModalities,
    attribute_classes,
)
from .unified_decoder import Representations, UnifiedDecoder

__all__ = [
    "IMAGE_TEXT_TO_TEXT",
    "IMAGE_TO_TEXT",
    "TEXT_TO_TEXT",
    "Attributes",
    "DenseFeedForward",
    "Representations",
    "Segment",
    "TaskModalities",
    "UnifiedDecoder",
    "attribute_classes",
]
