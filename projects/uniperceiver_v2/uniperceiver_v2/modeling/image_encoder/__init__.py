from .backbone import HuggingFaceBackbone, build_huggingface_backbone
from .image_encoder import ImageEncoder
from .region_network import RegionSupervision
from .structures import ImageEncoding, Proposals, RegionTargets, mean_of_valid

__all__ = [
    "HuggingFaceBackbone",
    "ImageEncoder",
    "ImageEncoding",
    "Proposals",
    "RegionSupervision",
    "RegionTargets",
    "build_huggingface_backbone",
    "mean_of_valid",
]
