"""A trained model for people: images and texts in, small typed answers out."""

from .api import THRESHOLD, Predictor
from .encoding import EncodedImages
from .galleries import Gallery
from .inputs import BadImages, ImageLike, ImagesLike
from .learned import learned, trained_kinds
from .pretrained import MODEL_ZOO
from .results import Box, Caption, Classification, Completion, Detections, Grounding, Match, Retrieval, Segmentation

__all__ = [
    "MODEL_ZOO",
    "THRESHOLD",
    "BadImages",
    "Box",
    "Caption",
    "Classification",
    "Completion",
    "Detections",
    "EncodedImages",
    "Gallery",
    "Grounding",
    "ImageLike",
    "ImagesLike",
    "Match",
    "Predictor",
    "Retrieval",
    "Segmentation",
    "learned",
    "trained_kinds",
]
