"""Weights of other projects, with which a model begins."""

import logging

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.adapters import load_pretrained

logger = logging.getLogger(__name__)


def load_pretrained_parts(cfg: CfgNode, model: nn.Module) -> bool:
    """Load ``MODEL.UNIPERCEIVER_V2.PRETRAINED`` into the model's image encoder and decoder, unless ``MODEL.WEIGHTS``
    has it all.

    Returns:
        whether anything was loaded.

    Raises:
        UserError: a source cannot be read, or does not fit key by key.
    """
    node = cfg.MODEL.UNIPERCEIVER_V2
    if not node.PRETRAINED:
        return False
    if cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS has the whole model, so MODEL.UNIPERCEIVER_V2.PRETRAINED is not read")
        return False
    load_pretrained(model.image_encoder, node.REGION.HEADS, node.PRETRAINED, model.decoder)
    return True
