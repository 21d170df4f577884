"""Masks: Hugging Face's Mask2Former, as deep and wide as the generalist's region network."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from .common import NUM_CLASSES, Pixels, Specialist, best_instances, resnet_config

QUERIES = 30


class Mask2Former(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        config = Mask2FormerConfig(
            backbone_config=resnet_config("stage1", "stage2", "stage3", "stage4"),
            feature_size=128,
            mask_feature_size=128,
            hidden_dim=128,
            encoder_layers=1,
            decoder_layers=4,  # one more than layers of the decoder: it counts the prediction before the first
            encoder_feedforward_dim=512,
            dim_feedforward=512,
            num_queries=QUERIES,
            num_labels=NUM_CLASSES,
            train_num_points=cfg.MODEL.UNIPERCEIVER_V2.CRITERION.NUM_POINTS,
        )
        self.model = Mask2FormerForUniversalSegmentation(config)
        self.pixels = Pixels(cfg)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        if self.training:
            masks = [x["instances"].gt_masks.tensor.float() for x in inputs]
            classes = [x["instances"].gt_classes for x in inputs]
            return self.model(pixel_values=self.pixels(inputs), mask_labels=masks, class_labels=classes).loss.squeeze()
        found = self.model(pixel_values=self.pixels(inputs))
        return [
            {"instances": instances_of(logits, masks, (x["height"], x["width"]))}
            for logits, masks, x in zip(found.class_queries_logits, found.masks_queries_logits, inputs, strict=True)
        ]


def instances_of(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> Instances:
    """Mask2Former's instances: P(class) times the mean probability within the mask; boxes around the masks.

    Args:
        logits: [Q,C+1], "no object" the last.
        masks: logits [Q,h,w].
        size: (height, width) of the image.
    """
    masks = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
    inside = masks > 0
    quality = (masks.sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
    scores = logits.softmax(-1)[:, :-1] * quality[:, None]
    return best_instances(scores, size, BitMasks(inside).get_bounding_boxes(), pred_masks=inside)


SPECIALIST = Specialist(
    task="scenes",
    tests={"digit_scenes_test": {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP")}},
    build=Mask2Former,
    rate=5e-4,
    pace=3.3,
    weight_decay=0.05,
    clip=0.1,
    any_size=True,
)
