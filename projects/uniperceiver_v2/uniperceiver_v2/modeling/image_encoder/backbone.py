"""Any Hugging Face backbone as a Detectron2 backbone."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from ...errors import UserError
from ..layers import replace_batch_norm
from ..pretrained import LOADING_ERRORS, has_weights, load_weights, resolve_directory


class HuggingFaceBackbone(Backbone):
    """Wraps a `transformers` backbone: images [B,3,H,W] in, {stage name: [B,C,H/stride,W/stride]} out.

    Args:
        model: what `AutoBackbone.from_config` or `.from_pretrained` returns.
        norm: "" leaves the model's batch normalisation as it is; "FrozenBN" and "GN" replace it.
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
        """The residual blocks of all stages, in their order.

        They are found by what they are, as every model has its own names for them: in a stage, the outermost lists of
        one of the model's own classes. A stage without such a list is itself a block, as in a plain Transformer.

        Raises:
            ValueError: the model has no list of as many parts as it has stages.
        """
        stages = _parts(self.model, count=len(self.model.stage_names) - 1)  # the first name is the stem's
        if not stages:
            raise ValueError(f"{type(self.model).__name__} has no list of its stages, so that no blocks are found")
        return [block for stage in stages for block in _parts(stage) or [stage]]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def _parts(module: nn.Module, count: int | None = None) -> list[nn.Module]:
    """Entries of the outermost lists below `module` that hold modules of one class, no layers of PyTorch, and `count`
    of them if it is given."""
    found = []
    for child in module.children():
        entries = list(child) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len({type(entry) for entry in entries}) == 1 and not type(entries[0]).__module__.startswith("torch.")
        found += entries if alike and count in (None, len(entries)) else _parts(child, count)
    return found


@torch.no_grad()
def measure_strides(model: nn.Module, size: int = 128) -> list[int]:
    """Stride of each feature map, from a run on an empty image: configurations name it differently or not at all."""
    training = model.training
    maps = model.eval()(torch.zeros(1, 3, size, size)).feature_maps
    model.train(training)
    return [size // feature_map.shape[-1] for feature_map in maps]


@BACKBONE_REGISTRY.register()
def build_huggingface_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HuggingFaceBackbone:
    """Builds MODEL.UNIPERCEIVER_V2.BACKBONE: from the directory PATH (configuration and, if there, weights), or from
    CONFIG, the fields of a Hugging Face configuration with its `model_type`.

    Raises:
        UserError: neither or both are given, or the configuration is not one of a backbone.
    """
    node = cfg.MODEL.UNIPERCEIVER_V2.BACKBONE
    fields = dict(node.CONFIG)
    if bool(node.PATH) == bool(fields):
        raise UserError("give one of MODEL.UNIPERCEIVER_V2.BACKBONE.PATH and MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG")
    out_features = list(node.OUT_FEATURES)
    try:
        if fields:
            model_type = fields.pop("model_type", None)
            config = AutoConfig.for_model(model_type, **fields, out_features=out_features)
            return HuggingFaceBackbone(AutoBackbone.from_config(config), node.NORM)
        directory = resolve_directory(node.PATH, "MODEL.UNIPERCEIVER_V2.BACKBONE.PATH")
        config = AutoConfig.from_pretrained(directory, out_features=out_features)
        if not has_weights(directory):
            return HuggingFaceBackbone(AutoBackbone.from_config(config), node.NORM)
        # AutoBackbone.from_pretrained takes a directory for the name of a timm model; the class behind it does not.
        with torch.device("meta"):
            backbone_class = type(AutoBackbone.from_config(config))
        return HuggingFaceBackbone(load_weights(backbone_class, directory, config=config), node.NORM)
    except LOADING_ERRORS as error:
        raise UserError(f"MODEL.UNIPERCEIVER_V2.BACKBONE cannot be built: {error}") from error
