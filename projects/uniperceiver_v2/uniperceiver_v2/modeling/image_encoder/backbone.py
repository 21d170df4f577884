"""An adapter that makes any Hugging Face backbone a Detectron2 backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoBackbone, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from ...errors import UserError, nearest
from ..layers import repeated_parts, replace_batch_norm
from ..pretrained import explained_directory, has_weights, load_config, load_weights, require_layers, resolve_directory

_BACKBONES = tuple(MODEL_FOR_BACKBONE_MAPPING_NAMES)
_PROBLEM = "MODEL.UNIPERCEIVER_V2.BACKBONE cannot be built"


class HuggingFaceBackbone(Backbone):
    """Wraps a `transformers` backbone: images [B,3,H,W] in, {stage name: [B,C,H/stride,W/stride]} out.

    Args:
        model: a model from `AutoBackbone.from_config` or `.from_pretrained`.
        norm: "" keeps the model's batch normalisation; "FrozenBN" and "GN" replace it.
    """

    def __init__(self, model: nn.Module, norm: str = ""):
        super().__init__()
        self.model = replace_batch_norm(model, norm)
        self._out_features = list(model.out_features)
        self._out_feature_channels = dict(zip(model.out_features, model.channels, strict=True))
        self._out_feature_strides = dict(zip(model.out_features, measure_strides(self.model), strict=True))

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.model(images).feature_maps, strict=True))

    def blocks(self) -> list[nn.Module]:
        """The residual blocks of all stages, in order.

        Every model names its blocks differently, so they are found by their structure. The blocks of a stage are the
        entries of its outermost lists of modules that all have the same class, one that PyTorch does not have. A stage
        without such a list counts as one block, as in a plain Transformer.

        Raises:
            ValueError: the model has no list with one entry for each stage.
        """
        stages = repeated_parts(self.model, count=len(self.model.stage_names) - 1)  # the first name belongs to the stem
        if not stages:
            raise ValueError(f"{type(self.model).__name__} has no list of its stages, so that no blocks are found")
        return [block for stage in stages for block in repeated_parts(stage) or [stage]]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


@torch.no_grad()
def measure_strides(model: nn.Module, size: int = 128) -> list[int]:
    """Stride of each feature map. It is measured on an empty image, as configurations have no common name for it."""
    training = model.training
    maps = model.eval()(torch.zeros(1, 3, size, size)).feature_maps
    model.train(training)
    return [size // feature_map.shape[-1] for feature_map in maps]


@BACKBONE_REGISTRY.register()
def build_huggingface_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HuggingFaceBackbone:
    """Builds the backbone of MODEL.UNIPERCEIVER_V2.BACKBONE.

    PATH is a Hugging Face directory with a configuration and, if it has any, weights. CONFIG has the fields of a
    Hugging Face configuration, `model_type` included, and gives random weights.

    Raises:
        UserError: neither or both are set, or the configuration is not that of a backbone, or of one without the
            stochastic depth that DROP_PATH asks for.
    """
    node = cfg.MODEL.UNIPERCEIVER_V2.BACKBONE
    fields = dict(node.CONFIG)
    if bool(node.PATH) == bool(fields):
        raise UserError("give one of MODEL.UNIPERCEIVER_V2.BACKBONE.PATH and MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG")
    out_features = list(node.OUT_FEATURES)
    if fields:
        with explained_directory(_PROBLEM):
            model_type = fields.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise UserError(f"{_PROBLEM}: there is no model_type {model_type!r}{nearest(model_type, _BACKBONES)}")
            require_layers(fields)
            config = AutoConfig.for_model(model_type, **fields, out_features=out_features)
            _set_drop_path(config, node.DROP_PATH)
            return HuggingFaceBackbone(AutoBackbone.from_config(config, trust_remote_code=False), node.NORM)
    directory = resolve_directory(node.PATH, "MODEL.UNIPERCEIVER_V2.BACKBONE.PATH")
    return _from_directory(directory, out_features, node.NORM, node.DROP_PATH)


def _set_drop_path(config: PretrainedConfig, rate: float) -> None:
    if rate >= 0 and not hasattr(config, "drop_path_rate"):
        raise UserError(f"MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH: a {config.model_type} has no stochastic depth")
    if rate >= 0:
        config.drop_path_rate = rate


def _from_directory(directory: Path, out_features: list[str], norm: str, drop_path: float) -> HuggingFaceBackbone:
    with explained_directory(_PROBLEM, directory):
        config = load_config(directory, out_features=out_features)
        _set_drop_path(config, drop_path)
        if not has_weights(directory):
            return HuggingFaceBackbone(AutoBackbone.from_config(config, trust_remote_code=False), norm)
        # AutoBackbone.from_pretrained reads a directory as the name of a timm model. The backbone's own class does not.
        with torch.device("meta"):
            backbone_class = type(AutoBackbone.from_config(config, trust_remote_code=False))
        return HuggingFaceBackbone(load_weights(backbone_class, directory, config=config), norm)
