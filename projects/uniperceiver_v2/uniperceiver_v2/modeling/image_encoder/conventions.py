"""Conventions of region networks: what their weights have to be computed with, and their shapes do not tell.

Weights that were trained with other conventions than ours keep their accuracy only with their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """The defaults are this project's.

    Attributes:
        position_in_pixel: where in its pixel a token's position encoding is taken, as a share of the pixel: 0.5 is its
            centre (Deformable DETR), 1 its far edge (Mask2Former, Mask DINO).
        large_anchors_first: whether the finest scale has the largest anchors. Mask DINO's decoder reads the scales from
            the coarsest on, and doubles the anchors in this order.
        border: tokens nearer to the image's border than this share of its sides are zero in query selection, and
            predict the box (1, 1, 1, 1) (Deformable DETR, A.4).
        tokens_are_contents: whether a query's content is its token, not a projection of it.
        decoder_normalises: whether states leave the decoder normalised. Boxes are predicted from them, and the other
            heads normalise them once more. The corrections that the next layer starts from come from the states
            themselves (DINO).
        last_pixel_counts: whether a mask's box ends behind its last pixel, not at it.
        padding_is_image: whether padding counts as a part of the image, as grey pixels would. Boxes are then learned
            and predicted in 0..1 of the padded map.
        box_of_no_pixel: (cx, cy, w, h) of a mask without a pixel; None for the box that its token predicts.
    """

    position_in_pixel: float = 0.5
    large_anchors_first: bool = False
    border: float = 0.0
    tokens_are_contents: bool = False
    decoder_normalises: bool = False
    last_pixel_counts: bool = True
    padding_is_image: bool = False
    box_of_no_pixel: tuple[float, float, float, float] | None = None


_MASK_DINO = {
    "position_in_pixel": 1.0,
    "large_anchors_first": True,
    "border": 0.01,
    "tokens_are_contents": True,
    "decoder_normalises": True,
    "padding_is_image": True,
}
# By the value of REGION.CONVENTIONS. Mask DINO has two ways to make a box of a mask: INITIALIZE_BOX_TYPE "bitmask" and
# "mask2box".
CONVENTIONS = {
    "": Conventions(),
    "mask_dino": Conventions(**_MASK_DINO, box_of_no_pixel=(0, 0, 0, 0)),
    "mask_dino_mask2box": Conventions(**_MASK_DINO, last_pixel_counts=False, box_of_no_pixel=(1, 1, 0, 0)),
}
