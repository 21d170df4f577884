"""Backbones of Detectron2, torchvision, timm and Microsoft, as Hugging Face's ResNet and Swin of the same weights.

Our keys are those of the installed `transformers`, below ``backbone.model``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import UserError
from .conversions import packed_attention
from .table import Plan, Rule

PARTS = ("backbone.**",)
_OURS = "backbone.model"
_COUNT = "a count that nothing reads"
_ATTENTION = ("query", "key", "value")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
KEPT = {
    f"{_OURS}.**.num_batches_tracked": _COUNT,
    f"{_OURS}.swin.layernorm.*": "nothing reads it: each map has a norm of its own",
}


def backbone_rules(state: Mapping[str, Tensor], prefix: str = "") -> list[Rule]:
    """The rules of a backbone whose keys begin with `prefix`.

    Raises:
        UserError: it is none that is known.
    """
    for key, rules in (("stem.conv1.weight", resnet), ("layer1.0.conv1.weight", torchvision_resnet)):
        if prefix + key in state:
            return rules(prefix)
    if prefix + "patch_embed.proj.weight" in state:
        return swin(prefix)
    known = "Detectron2's, torchvision's or timm's ResNet, Microsoft's Swin"
    raise UserError(f"the backbone below {prefix!r} is none that is known ({known})")


def resnet(prefix: str) -> list[Rule]:
    """Detectron2's ResNet."""
    rules = _convolution(f"{prefix}stem.conv1", f"{prefix}stem.conv1.norm", "embedder.embedder")
    for stage in range(4):
        source, target = f"{prefix}res{stage + 2}.*", f"encoder.stages.{stage}.layers.*"
        rules += _convolution(f"{source}.shortcut", f"{source}.shortcut.norm", f"{target}.shortcut")
        for number in range(3):
            convolution = f"{source}.conv{number + 1}"
            rules += _convolution(convolution, f"{convolution}.norm", f"{target}.layer.{number}")
    return [*rules, Rule(f"{prefix}stem.fc.*", "", "the classifier")]


def torchvision_resnet(prefix: str) -> list[Rule]:
    """torchvision's and timm's ResNet, which have the same keys."""
    rules = _convolution(f"{prefix}conv1", f"{prefix}bn1", "embedder.embedder")
    for stage in range(4):
        source, target = f"{prefix}layer{stage + 1}.*", f"encoder.stages.{stage}.layers.*"
        rules += _convolution(f"{source}.downsample.0", f"{source}.downsample.1", f"{target}.shortcut")
        for number in range(3):
            rules += _convolution(f"{source}.conv{number + 1}", f"{source}.bn{number + 1}", f"{target}.layer.{number}")
    return [*rules, Rule(f"{prefix}fc.*", "", "the classifier")]


def _convolution(source: str, norm: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{_OURS}.{target}.convolution.weight"),
        *(Rule(f"{norm}.{name}", f"{_OURS}.{target}.normalization.{name}") for name in _STATISTICS),
        Rule(f"{norm}.num_batches_tracked", "", _COUNT),
    ]


def swin(prefix: str) -> list[Rule]:
    """Microsoft's Swin, and Detectron2's and Mask DINO's with a norm for each map."""
    block, ours = f"{prefix}layers.*.blocks.*", f"{_OURS}.swin.encoder.layers.*.blocks.*"
    bias, merging = "relative_position_bias_table", f"{prefix}layers.*.downsample"
    return [
        Rule(f"{prefix}patch_embed.proj.*", f"{_OURS}.swin.embeddings.patch_embeddings.projection.*"),
        Rule(f"{prefix}patch_embed.norm.*", f"{_OURS}.swin.embeddings.norm.*"),
        Rule(f"{block}.norm1.*", f"{ours}.layernorm_before.*"),
        *packed_attention(f"{block}.attn", f"{ours}.attention", ("qkv.weight", "qkv.bias")),
        Rule(f"{block}.attn.proj.*", f"{ours}.attention.o_proj.*"),
        Rule(f"{block}.attn.{bias}", f"{ours}.attention.relative_position_bias.{bias}"),
        Rule(f"{block}.attn.relative_position_index", "", "follows from the size of the window"),
        Rule(f"{block}.norm2.*", f"{ours}.layernorm_after.*"),
        Rule(f"{block}.mlp.**", f"{ours}.mlp.**"),
        Rule(f"{merging}.**", f"{_OURS}.swin.encoder.layers.*.downsample.**"),
        *(Rule(f"{prefix}norm{n}.*", f"{_OURS}.hidden_states_norms.stage{n + 1}.*") for n in range(4)),
        Rule(f"{prefix}layers.*.blocks.*.attn_mask", "", "follows from the sizes of map and window"),
        Rule(f"{prefix}norm.*", "", "the classifier's"),
        Rule(f"{prefix}head.*", "", "the classifier"),
    ]


def huggingface(prefix: str) -> list[Rule]:
    """Hugging Face's own ResNet and Swin, by the names of their files."""
    block, ours = f"{prefix}encoder.layers.*.blocks.*", f"{_OURS}.swin.encoder.layers.*.blocks.*"
    bias = "relative_position_bias_table"
    stem, stages = "embedder.embedder", "encoder.stages.**"
    return [
        *(
            Rule(f"{prefix}{part}.{kind}", f"{_OURS}.{part}.{kind}")
            for part in (stem, stages)
            for kind in ("convolution.weight", *(f"normalization.{name}" for name in _STATISTICS))
        ),
        *(Rule(f"{prefix}{part}.normalization.num_batches_tracked", "", _COUNT) for part in (stem, stages)),
        Rule(f"{prefix}embeddings.**", f"{_OURS}.swin.embeddings.**"),
        *(Rule(f"{block}.layernorm_{name}.*", f"{ours}.layernorm_{name}.*") for name in ("before", "after")),
        *(Rule(f"{block}.attention.self.{name}.*", f"{ours}.attention.{name[0]}_proj.*") for name in _ATTENTION),
        Rule(f"{block}.attention.self.{bias}", f"{ours}.attention.relative_position_bias.{bias}"),
        Rule(f"{block}.attention.self.relative_position_index", "", "follows from the size of the window"),
        Rule(f"{block}.attention.output.dense.*", f"{ours}.attention.o_proj.*"),
        Rule(f"{block}.intermediate.dense.*", f"{ours}.mlp.fc1.*"),
        Rule(f"{block}.output.dense.*", f"{ours}.mlp.fc2.*"),
        Rule(f"{prefix}encoder.layers.*.downsample.**", f"{_OURS}.swin.encoder.layers.*.downsample.**"),
        Rule(f"{prefix}hidden_states_norms.**", f"{_OURS}.hidden_states_norms.**"),
        Rule(f"{prefix}swin.layernorm.*", f"{_OURS}.swin.layernorm.*"),
    ]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key in state for key in ("stem.conv1.weight", "layer1.0.conv1.weight", "patch_embed.proj.weight"))


def plan(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: int) -> Plan:
    """A backbone alone: Detectron2's model zoo, torchvision's or Microsoft's file."""
    kept = {f"{_OURS}.hidden_states_norms.**": "the classifier has none behind its stages"}
    statistics = {}
    if "stem.conv1.weight" in state and "stem.conv1.norm.running_mean" not in state:
        # Caffe2's models have their statistics in weight and bias.
        for key in own:
            for name, fill in (("running_mean", torch.zeros_like), ("running_var", torch.ones_like)):
                if key.startswith(_OURS) and key.endswith(name):
                    statistics[key] = fill(own[key]), "weight and bias contain the statistics"
    rules = (
        [*backbone_rules(state), Rule("stem.conv1.bias", "", "zeros, which Detectron2 leaves out, too")]
        if statistics
        else backbone_rules(state)
    )
    return Plan("A backbone", rules, PARTS, supplied=statistics, kept=KEPT | kept)
