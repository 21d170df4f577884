"""Detection: Hugging Face's Deformable DETR, as deep and wide as the generalist's region network.

Its feed-forward networks are wider, so that it has about as many parameters as the generalist. It has box refinement
and all auxiliary losses. It is not two-stage, since Hugging Face's loss has no part for the first stage, which would
choose its proposals by a head that is never trained. Nothing of the backbone is frozen, since it has random weights.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrFrozenBatchNorm2d

from uniperceiver_v2.modeling.image_encoder.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from uniperceiver_v2.modeling.layers import group_norm

from .common import NUM_CLASSES, Pixels, Specialist, best_instances, resnet_config

QUERIES = 30


class DeformableDetr(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        config = DeformableDetrConfig(
            backbone_config=resnet_config("stage2", "stage3", "stage4"),
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            d_model=128,
            encoder_layers=1,
            decoder_layers=3,
            encoder_ffn_dim=1536,
            decoder_ffn_dim=1536,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            num_queries=QUERIES,
            with_box_refine=True,
            auxiliary_loss=True,
            num_labels=NUM_CLASSES,
            dropout=0.0,
        )
        self.detr = DeformableDetrForObjectDetection(config)
        thaw(self.detr.model.backbone)
        self.pixels = Pixels(cfg)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        if self.training:
            return self.detr(pixel_values=self.pixels(inputs), labels=[labels_of(x["instances"]) for x in inputs]).loss
        found = self.detr(pixel_values=self.pixels(inputs))
        results = []
        for scores, boxes, x in zip(found.logits.sigmoid(), found.pred_boxes, inputs, strict=True):
            size = x["height"], x["width"]
            corners = cxcywh_to_xyxy(boxes) * torch.tensor([size[1], size[0]] * 2)
            results.append({"instances": best_instances(scores, size, Boxes(corners))})
        return results


def thaw(model: nn.Module) -> None:
    """Undo in place what Hugging Face does for pre-trained backbones: all weights learn, and group normalisation, as in
    the generalist, replaces frozen batch normalisation, which would normalise nothing."""
    model.requires_grad_()
    for name, child in model.named_children():
        if isinstance(child, DeformableDetrFrozenBatchNorm2d):
            setattr(model, name, group_norm(len(child.weight)))
        else:
            thaw(child)


def labels_of(instances: Instances) -> dict[str, Tensor]:
    """The targets of an image in Hugging Face's form."""
    height, width = instances.image_size
    boxes = instances.gt_boxes.tensor / torch.tensor([width, height, width, height])
    return {"class_labels": instances.gt_classes, "boxes": xyxy_to_cxcywh(boxes).float()}


SPECIALIST = Specialist(
    task="scenes",
    tests={"digit_scenes_test": {"box AP": ("bbox", "AP")}},
    build=DeformableDetr,
    rate=5e-4,
    pace=3.3,
    weight_decay=1e-4,
    clip=0.1,
    settings={"MODEL.MASK_ON": False},
    any_size=True,
)
