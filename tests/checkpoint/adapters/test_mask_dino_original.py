"""Our facts about Mask DINO's checkpoints, and our boxes and masks, beside the original, where it is installed."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from uniperceiver_v2.modeling.image_encoder import ImageEncoder

from . import mask_dino_keys as keys
from .test_mask_dino import (
    CLASSES,
    QUERIES,
    SMALL_SWIN,
    assert_same_proposals,
    load,
    proposals,
    resnet_config,
    settings,
    swin_config,
)

maskdino = pytest.importorskip("maskdino", reason="Mask DINO is not installed", exc_type=ImportError)
pytestmark = pytest.mark.slow


def original(classes: int, queries: int, mask_boxes: str, **heads) -> tuple[CfgNode, dict]:
    """The original's settings of its published models, with changes."""
    cfg = get_cfg()
    maskdino.add_maskdino_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "cpu", "MaskDINO", ("coco_2017_train",)
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = ["res2", "res3", "res4", "res5"], False
    sizes = {"ENCODER": 6, "DECODER": 9, "FFN": 2048, "MAPS": ["res3", "res4", "res5"]} | heads
    cfg.merge_from_list(
        [
            *("MODEL.SEM_SEG_HEAD.NAME", "MaskDINOHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes),
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 256, "MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
            *("MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.SEM_SEG_HEAD.DIM_FEEDFORWARD", sizes["FFN"]),
            *("MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS", len(sizes["MAPS"]) + 1),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", sizes["MAPS"]),
            *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", sizes["ENCODER"]),
            *("MODEL.SEM_SEG_HEAD.FEATURE_ORDER", "low2high", "MODEL.MaskDINO.DEC_LAYERS", sizes["DECODER"]),
            *("MODEL.MaskDINO.TRANSFORMER_DECODER_NAME", "MaskDINODecoder", "MODEL.MaskDINO.NHEADS", 8),
            *("MODEL.MaskDINO.DROPOUT", 0.0, "MODEL.MaskDINO.DIM_FEEDFORWARD", sizes["FFN"]),
            *("MODEL.MaskDINO.NUM_OBJECT_QUERIES", queries, "MODEL.MaskDINO.INITIALIZE_BOX_TYPE", mask_boxes),
            *("MODEL.MaskDINO.TEST.SEMANTIC_ON", False, "MODEL.MaskDINO.TEST.INSTANCE_ON", True),
        ]
    )
    return cfg


def predictions(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs, _ = model.sem_seg_head(model.backbone(images))
    return {
        name: outputs[f"pred_{key}"] for name, key in (("classes", "logits"), ("boxes", "boxes"), ("masks", "masks"))
    }


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_resnet_50_as_published(tmp_path):
    model = maskdino.MaskDINO(original(classes=80, queries=300, mask_boxes="mask2box")).eval()
    shapes = keys.r50() | keys.heads((256, 512, 1024, 2048))
    assert shapes_of(model) == shapes
    state = keys.random_checkpoint(shapes)
    model.load_state_dict(state)
    region = {"ENCODER_LAYERS": 6, "DECODER_LAYERS": 9, "FFN_DIM": 2048, "NUM_QUERIES": 300, "OBJECTNESS_PARTS": 80}
    cfg = settings(resnet_config((3, 4, 6, 3)), CONVENTIONS="mask_dino_mask2box", **region)
    encoder = ImageEncoder(cfg).eval()
    load(encoder, state, tmp_path)
    images = torch.randn(1, 3, 256, 320)
    assert_same_proposals(proposals(encoder, images)[1], predictions(model, images))


def test_swin_with_a_scale_for_each_map(tmp_path):
    sizes = {"ENCODER": 1, "DECODER": 2, "FFN": 32, "MAPS": ["res2", "res3", "res4", "res5"]}
    cfg = original(CLASSES, QUERIES, "bitmask", **sizes)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SWIN.EMBED_DIM = "D2SwinTransformer", SMALL_SWIN["width"]
    cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = list(SMALL_SWIN["depths"]), list(SMALL_SWIN["heads"])
    cfg.MODEL.SWIN.WINDOW_SIZE = SMALL_SWIN["window"]
    model = maskdino.MaskDINO(cfg).eval()
    small = {"classes": CLASSES, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32}
    shapes = keys.swin(**SMALL_SWIN) | keys.heads((16, 32, 64, 128), scales=4, **small)
    assert shapes_of(model) == shapes
    state = keys.random_checkpoint(shapes)
    for key, value in model.state_dict().items():
        if key.endswith("relative_position_index"):
            state[key] = value
    model.load_state_dict(state)
    encoder = ImageEncoder(settings(swin_config(**SMALL_SWIN), FIRST_SCALE=0)).eval()
    load(encoder, state, tmp_path)
    images = torch.randn(2, 3, 160, 224)  # maps that are no whole windows
    assert_same_proposals(proposals(encoder, images)[1], predictions(model, images))
