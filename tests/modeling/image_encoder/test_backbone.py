"""Hugging Face backbones as Detectron2 backbones, from fields and from directories."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import Backbone, build_backbone
from torch import nn
from transformers import AutoConfig, ConvNextModel, ResNetForImageClassification, SwinForImageClassification

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import HuggingFaceBackbone, build_huggingface_backbone
from uniperceiver_v2.modeling.layers import FrozenBatchNorm2d

RESNET = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
CHANNELS = {"resnet": [8, 12, 16, 24], "swin": [8, 16, 32, 64], "convnext": [8, 12, 16, 24]}


def backbone_cfg(fields: dict | None = None, path="", norm: str = "", out_features: list[str] | None = None) -> CfgNode:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_huggingface_backbone"
    node = cfg.MODEL.UNIPERCEIVER_V2.BACKBONE
    node.CONFIG, node.PATH, node.NORM = CfgNode(fields or {}), str(path), norm
    if out_features is not None:
        node.OUT_FEATURES = out_features
    return cfg


@pytest.mark.parametrize("fields", [RESNET, SWIN, CONVNEXT], ids=lambda fields: fields["model_type"])
def test_shapes_and_strides(fields):
    backbone = build_backbone(backbone_cfg(fields))
    assert isinstance(backbone, HuggingFaceBackbone)
    assert isinstance(backbone, Backbone)
    assert backbone.size_divisibility == 32
    shapes = backbone.output_shape()
    assert list(shapes) == ["stage1", "stage2", "stage3", "stage4"]
    assert [shape.channels for shape in shapes.values()] == CHANNELS[fields["model_type"]]
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 32]
    maps = backbone(torch.randn(2, 3, 64, 96))
    for name, shape in shapes.items():
        assert maps[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_fewer_stages():
    backbone = build_backbone(backbone_cfg(RESNET, out_features=["stage2", "stage3"]))
    assert backbone.size_divisibility == 16
    assert list(backbone(torch.randn(2, 3, 64, 64))) == ["stage2", "stage3"]


def test_measuring_strides_leaves_the_mode_and_the_statistics():
    backbone = build_backbone(backbone_cfg(RESNET))
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all((norm.running_mean == 0).all() for norm in norms)


@pytest.mark.parametrize(("norm", "kind"), [("FrozenBN", FrozenBatchNorm2d), ("GN", nn.GroupNorm)])
def test_norm_is_replaced_everywhere(norm, kind):
    backbone = build_backbone(backbone_cfg(RESNET, norm=norm))
    kinds = {type(m) for m in backbone.modules()}
    assert kind in kinds
    assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize(
    ("fields", "model_class", "prefix"),
    [
        (RESNET, ResNetForImageClassification, "resnet."),
        (SWIN, SwinForImageClassification, "swin."),
        (CONVNEXT, ConvNextModel, ""),
    ],
    ids=["resnet", "swin", "convnext"],
)
def test_directory_with_weights(tmp_path, fields, model_class, prefix):
    """The directory of a published classifier can be used as a backbone."""
    saved = model_class(AutoConfig.for_model(**fields))
    for parameter in saved.parameters():
        nn.init.normal_(parameter)
    saved.save_pretrained(tmp_path)
    backbone = build_backbone(backbone_cfg(path=tmp_path))
    state, found = (
        {name.removeprefix(prefix): x for name, x in model.state_dict().items()} for model in (saved, backbone.model)
    )
    shared = found.keys() & state.keys()
    assert len(shared) > 0.7 * len(found)
    for name in shared:
        assert torch.equal(found[name], state[name]), name
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in backbone.parameters())
    assert len(backbone(torch.randn(2, 3, 64, 64))) == 4


def test_frozen_norms_keep_loaded_statistics(tmp_path):
    saved = ResNetForImageClassification(AutoConfig.for_model(**RESNET)).eval()
    for module in saved.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    saved.save_pretrained(tmp_path)
    backbone = build_backbone(backbone_cfg(path=tmp_path, norm="FrozenBN")).train()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(backbone(images)["stage4"], saved.resnet(images).last_hidden_state)


def test_directory_without_weights(tmp_path):
    AutoConfig.for_model(**RESNET).save_pretrained(tmp_path)
    backbone = build_huggingface_backbone(backbone_cfg(path=tmp_path), None)
    assert [shape.channels for shape in backbone.output_shape().values()] == CHANNELS["resnet"]


def message(cfg: CfgNode) -> str:
    with pytest.raises(UserError) as info:
        build_backbone(cfg)
    return str(info.value)


def test_one_of_path_and_fields():
    assert "give one of" in message(backbone_cfg())
    assert "give one of" in message(backbone_cfg(RESNET, path="somewhere"))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"model_type": "resnett"}, "resnett'; did you mean 'resnet'"),
        ({"hidden_sizes": [8, 12]}, "model_type|model identifier"),
        ({"model_type": "bert"}, "BertConfig"),
        ({**RESNET, "hidden_sizes": "wide"}, "hidden_sizes"),
        ({**RESNET, "hidden_sizes": [8, 12]}, ""),
        ({**RESNET, "layer_type": "basicc"}, "basicc"),
        ({**RESNET, "depths": [1, 2**31, 1, 1]}, "depths has 2147483648 layers"),
        ({**RESNET, "depths": [1, 1, 1, -1]}, "depths has -1 layers"),
    ],
)
def test_fields_of_no_backbone(fields, part):
    with pytest.raises(UserError, match=f"MODEL.UNIPERCEIVER_V2.BACKBONE cannot be built(?s:.*){part}"):
        build_backbone(backbone_cfg(fields))


def test_unknown_stage():
    assert "stage9" in message(backbone_cfg(RESNET, out_features=["stage1", "stage9"]))


def test_unknown_norm():
    assert "SyncBN" in message(backbone_cfg(RESNET, norm="SyncBN"))


def test_missing_and_empty_directories(tmp_path):
    assert str(tmp_path / "nowhere") in message(backbone_cfg(path=tmp_path / "nowhere"))
    assert str(tmp_path) in message(backbone_cfg(path=tmp_path))


def test_weights_cut_short(tmp_path):
    ResNetForImageClassification(AutoConfig.for_model(**RESNET)).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "cannot be built" in message(backbone_cfg(path=tmp_path))


def test_weights_of_other_shapes(tmp_path):
    ResNetForImageClassification(AutoConfig.for_model(**RESNET)).save_pretrained(tmp_path)
    AutoConfig.for_model(**{**RESNET, "hidden_sizes": [8, 12, 16, 32]}).save_pretrained(tmp_path)
    found = message(backbone_cfg(path=tmp_path))
    assert "another architecture" in found
    assert "[24, 16, 3, 3] in the file, [32, 16, 3, 3] in the model" in found


def test_weights_of_another_model(tmp_path):
    ResNetForImageClassification(AutoConfig.for_model(**RESNET)).save_pretrained(tmp_path)
    AutoConfig.for_model(**CONVNEXT).save_pretrained(tmp_path)
    assert "another architecture" in message(backbone_cfg(path=tmp_path))


def drop_path_rates(cfg: CfgNode) -> list[float]:
    """Of the blocks; 0 where a block has no stochastic depth."""
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in build_backbone(cfg).blocks()]


def test_stochastic_depth_replaces_the_models_own(tmp_path):
    AutoConfig.for_model(**SWIN).save_pretrained(tmp_path)
    for cfg in (backbone_cfg(SWIN), backbone_cfg(path=tmp_path)):
        assert drop_path_rates(cfg) == pytest.approx([0.0, 0.1 / 3, 0.2 / 3, 0.1]), "transformers' default is 0.1"
        cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH = 0.3
        assert drop_path_rates(cfg) == pytest.approx([0.0, 0.1, 0.2, 0.3])
        cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH = 0.0
        assert drop_path_rates(cfg) == [0.0] * 4


def test_a_resnet_has_no_stochastic_depth():
    cfg = backbone_cfg(RESNET)
    cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH = 0.3
    with pytest.raises(UserError, match=r"BACKBONE\.DROP_PATH: a resnet has no stochastic depth"):
        build_backbone(cfg)
