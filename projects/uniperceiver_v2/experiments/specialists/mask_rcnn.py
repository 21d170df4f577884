"""Detection with masks: Detectron2's Mask R-CNN with a ResNet-18 and a feature pyramid, where upstream is installed.

Anchors, regions and heads are as small as digit_scenes: digits have 14 to 40 pixels, and a scene has six of them.
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .common import Specialist

SETTINGS = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 128, NORM: BN}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [96]]}
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 300
    PRE_NMS_TOPK_TEST: 300
    POST_NMS_TOPK_TRAIN: 200
    POST_NMS_TOPK_TEST: 100
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 10, BATCH_SIZE_PER_IMAGE: 64}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, FC_DIM: 256, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 2, CONV_DIM: 128, POOLER_RESOLUTION: 14}
"""


def is_installed() -> bool:
    """Whether this is upstream: the part of it that the project brings along has no region-based model."""
    return "GeneralizedRCNN" in META_ARCH_REGISTRY


class MaskRCNN(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        own = get_cfg()
        own.merge_from_other_cfg(CfgNode.load_cfg(SETTINGS))
        own.MODEL.PIXEL_MEAN, own.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        self.model = build_model(own)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        if not self.training:
            return self.model(inputs)
        with EventStorage():  # the model counts its regions there
            return sum(self.model(inputs).values())


SPECIALIST = Specialist(
    task="scenes",
    tests={"digit_scenes_test": {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP")}},
    build=MaskRCNN,
    rate=1e-3,
    weight_decay=0.05,
    can_run=is_installed,
)
