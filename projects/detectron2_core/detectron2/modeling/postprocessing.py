from __future__ import annotations

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from torch.nn import functional as F


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale the predictions for a resized image to the requested size.

    Args:
        results: ``pred_boxes`` (or ``proposal_boxes``) in pixels of ``results.image_size``. Optionally ``pred_masks``,
            probabilities [N,1,M,M] relative to the predicted boxes, and ``pred_keypoints`` [N,K,3]. Boxes and keypoints
            are scaled in place.
        output_height, output_width: the requested size.
        mask_threshold: a pixel with at least this probability belongs to a mask.

    Returns:
        Instances of the requested size. Boxes are scaled and clipped. Instances with empty boxes are removed. Masks are
        bool [N,output_height,output_width].
    """
    scale_x = output_width / results.image_size[1]
    scale_y = output_height / results.image_size[0]
    results = Instances((output_height, output_width), **results.get_fields())
    assert results.has("pred_boxes") or results.has("proposal_boxes"), "Predictions must contain boxes!"
    boxes = results.pred_boxes if results.has("pred_boxes") else results.proposal_boxes
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        results.pred_masks = paste_masks_in_image(
            results.pred_masks[:, 0], results.pred_boxes, results.image_size, mask_threshold
        )
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off per-pixel predictions and resize them bilinearly to the requested size.

    Args:
        result: [C,H,W] at the resolution of the padded network input.
        img_size: (height, width) of the image inside that input, at its top left corner.
        output_height, output_width: the requested size.

    Returns:
        [C,output_height,output_width].
    """
    image = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(image, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
