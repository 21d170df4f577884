from .backbone import HuggingFaceBackbone, build_huggingface_backbone
from .image_encoder import ImageEncoder
from .region_network import RegionSupervision, average_over_ranks
from .structures import ImageEncoding, Proposals, RegionTargets, mean_of_valid

__all__ = [
    "HuggingFaceBackbone",
    "ImageEncoder",
    "ImageEncoding",
    "Proposals",
    "RegionSupervision",
    "RegionTargets",
    "average_over_ranks",
    "build_huggingface_backbone",
    "mean_of_valid",
]
