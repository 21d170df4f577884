from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = (
    """Backbones by name: callables of (cfg, input :class:`ShapeSpec`) to a :class:`Backbone`."""
)


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone with the name ``cfg.MODEL.BACKBONE.NAME``.

    ``input_shape`` defaults to an image with as many channels as ``cfg.MODEL.PIXEL_MEAN`` has entries.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone), f"{cfg.MODEL.BACKBONE.NAME} built {type(backbone)}, not a Backbone"
    return backbone
