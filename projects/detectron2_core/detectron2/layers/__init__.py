from .mask_ops import paste_masks_in_image
from .shape_spec import ShapeSpec

__all__ = ["ShapeSpec", "paste_masks_in_image"]
