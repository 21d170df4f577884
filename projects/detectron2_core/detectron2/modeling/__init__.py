from detectron2.layers import ShapeSpec

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .meta_arch import META_ARCH_REGISTRY, build_model
from .postprocessing import detector_postprocess

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "Backbone",
    "ShapeSpec",
    "build_backbone",
    "build_model",
    "detector_postprocess",
]
