from .cache import DecoderCache
from .feed_forward import ConditionalFeedForward, DenseFeedForward, MergedFeedForward
from .routes import expert_routes, routes_table
from .segments import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    Attributes,
    Segment,
    TaskModalities,
    attribute_classes,
)
from .unified_decoder import MergeReport, Representations, UnifiedDecoder

__all__ = [
    "IMAGE_TEXT_TO_TEXT",
    "IMAGE_TO_TEXT",
    "TEXT_TO_TEXT",
    "Attributes",
    "ConditionalFeedForward",
    "DecoderCache",
    "DenseFeedForward",
    "MergeReport",
    "MergedFeedForward",
    "Representations",
    "Segment",
    "TaskModalities",
    "UnifiedDecoder",
    "attribute_classes",
    "expert_routes",
    "routes_table",
]
