"""Models for one task alone, a file for each, beside which the generalist is measured."""

from collections.abc import Mapping

from . import captioner, centernet, deformable_detr, dual_encoder, language_model, mask2former, mask_rcnn, resnet
from .common import Specialist

SPECIALISTS: Mapping[str, Specialist] = {
    "CenterNet": centernet.DETECTOR,
    "Deformable DETR": deformable_detr.SPECIALIST,
    "Mask2Former": mask2former.SPECIALIST,
    "Mask R-CNN": mask_rcnn.SPECIALIST,
    "CenterNet of phrases": centernet.PHRASE_DETECTOR,
    "ResNet": resnet.SPECIALIST,
    "VisionEncoderDecoder": captioner.SPECIALIST,
    "dual encoder": dual_encoder.SPECIALIST,
    "RoBERTa": language_model.SPECIALIST,
}
