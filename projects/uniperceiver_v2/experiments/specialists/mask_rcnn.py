"""Boxes and masks: Detectron2's Mask R-CNN with a ResNet-18 and a feature pyramid, where upstream is installed.

Its layers are upstream's, with anchors and heads of a size for small images. All weights learn from random values, so
group normalisation takes the place of frozen batch normalisation, as in the other specialists.
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .common import BEST_OF_IMAGE, NUM_CLASSES, Specialist

LEVELS = ["p2", "p3", "p4", "p5"]
# Upstream's settings, where they are not its own defaults.
SETTINGS = {
    "BACKBONE.NAME": "build_resnet_fpn_backbone",
    "BACKBONE.FREEZE_AT": 0,
    "RESNETS.DEPTH": 18,
    "RESNETS.RES2_OUT_CHANNELS": 64,
    "RESNETS.NORM": "GN",
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.OUT_CHANNELS": 128,
    "FPN.NORM": "GN",
    "ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [96]],
    "RPN.IN_FEATURES": [*LEVELS, "p6"],
    "RPN.BATCH_SIZE_PER_IMAGE": 64,
    "RPN.PRE_NMS_TOPK_TRAIN": 300,
    "RPN.PRE_NMS_TOPK_TEST": 300,
    "RPN.POST_NMS_TOPK_TRAIN": 200,
    "RPN.POST_NMS_TOPK_TEST": 200,
    "ROI_HEADS.NAME": "StandardROIHeads",
    "ROI_HEADS.IN_FEATURES": LEVELS,
    "ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "ROI_BOX_HEAD.NUM_FC": 1,
    "ROI_BOX_HEAD.FC_DIM": 256,
    "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "ROI_MASK_HEAD.NUM_CONV": 2,
    "ROI_MASK_HEAD.CONV_DIM": 128,
    "MASK_ON": True,
    "DEVICE": "cpu",
}


class MaskRCNN(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        own = get_cfg()
        own.merge_from_list([part for key, value in SETTINGS.items() for part in (f"MODEL.{key}", value)])
        own.MODEL.PIXEL_MEAN, own.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        own.TEST.DETECTIONS_PER_IMAGE = BEST_OF_IMAGE
        self.model = build_model(own)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        if self.training:
            with EventStorage():  # upstream's heads count their samples in one
                return sum(self.model(inputs).values())
        return self.model(inputs)


SPECIALIST = Specialist(
    task="scenes",
    tests={"digit_scenes_test": {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP")}},
    build=MaskRCNN,
    rate=1e-3,
    pace=1.0,
    needs="detectron2.modeling.roi_heads",
    any_size=True,
)
