"""Models and backbones by their registered names."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
)
from torch import nn

# Registries are for the whole process: names that no other test module takes.


@BACKBONE_REGISTRY.register()
class StubBackboneForBuildTest(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.input_shape = input_shape
        self._out_features = ["low", "high"]
        self._out_feature_channels = {"low": 8, "high": 16}
        self._out_feature_strides = {"low": 4, "high": 8}

    def forward(self, image):
        batch, _, height, width = image.shape
        return {
            name: image.new_zeros(batch, shape.channels, height // shape.stride, width // shape.stride)
            for name, shape in self.output_shape().items()
        }


@BACKBONE_REGISTRY.register()
def no_backbone_for_build_test(cfg, input_shape):
    return nn.Identity()


@META_ARCH_REGISTRY.register()
class StubMetaArchForBuildTest(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.masks = cfg.MODEL.MASK_ON
        self.weight = nn.Parameter(torch.zeros(2))


def test_build_model_by_name_and_device():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "StubMetaArchForBuildTest"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.DEVICE = "meta"
    model = build_model(cfg)
    assert isinstance(model, StubMetaArchForBuildTest)
    assert model.masks is True
    assert model.weight.device.type == "meta"


def test_an_unknown_model_is_named():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "NoSuchMetaArch"
    with pytest.raises(KeyError, match="NoSuchMetaArch"):
        build_model(cfg)


def test_build_backbone_takes_the_input_from_the_pixel_means():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "StubBackboneForBuildTest"
    assert build_backbone(cfg).input_shape == ShapeSpec(channels=3)
    cfg.MODEL.PIXEL_MEAN = [0.5]
    assert build_backbone(cfg).input_shape.channels == 1
    given = ShapeSpec(channels=9, stride=2)
    assert build_backbone(cfg, given).input_shape is given


def test_build_backbone_wants_a_backbone():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "no_backbone_for_build_test"
    with pytest.raises(AssertionError):
        build_backbone(cfg)


def test_backbone_describes_its_features():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "StubBackboneForBuildTest"
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert shapes == {"low": ShapeSpec(channels=8, stride=4), "high": ShapeSpec(channels=16, stride=8)}
    assert list(shapes) == ["low", "high"]
    features = backbone(torch.zeros(2, 3, 32, 64))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "low": (2, 8, 8, 16),
        "high": (2, 16, 4, 8),
    }
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}


def test_backbone_is_abstract():
    with pytest.raises(TypeError):
        Backbone()
