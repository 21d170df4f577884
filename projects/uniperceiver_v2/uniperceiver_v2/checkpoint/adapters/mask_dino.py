"""Mask DINO's published checkpoints (Detectron2 format): backbone and region network.

With `REGION.CONVENTIONS` of Mask DINO, the converted network gives the original's boxes and masks. What does not
correspond:

- Its K classes become K parts of one objectness: an object is what is any of the classes, so the logit is the largest
  of the classes' logits. That is the number by which Mask DINO selects queries. No single linear map equals it. Nothing
  is lost but which class it was: categories come from texts here.
- Of its label embeddings, which begin denoising queries with a known class, the mean begins ours, which have no class.
- Parts of ours that it does not have add nothing at first: what a query is told of better ones, and the projection of
  the finest scale before it is added to the pixel embeddings, which becomes the identity.
- Padding up to a multiple of 32 pixels is part of the image there, and padding here. Results are equal for images whose
  sides are such multiples, and nearly so for others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .backbones import KEPT, backbone_rules
from .conversions import deformable_attention, packed_attention, swapped_coordinates
from .table import Plan, Rule

_PIXELS, _QUERIES = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return f"{_QUERIES}.class_embed.weight" in state and f"{_PIXELS}.transformer.level_embed" in state


def plan(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: int) -> Plan:
    """How a checkpoint becomes our backbone and region network.

    Args:
        state: the checkpoint's tensors.
        own: the state of our image encoder.
        heads: of the region network's attentions.
    """
    levels, classes = len(state[f"{_PIXELS}.transformer.level_embed"]), len(state[f"{_QUERIES}.class_embed.weight"])
    sides = [state[f"{_PIXELS}.input_proj.{level}.0.weight"].shape[-1] for level in range(levels)]
    first, extra = 4 - sides.count(1), sides.count(3)  # of the backbone's four maps; strided convolutions are 3×3
    rules = [
        *backbone_rules(state, "backbone."),
        *_encoder(heads, levels),
        *_selection(classes),
        *_decoder(heads, levels),
        Rule("criterion.empty_weight", "", "a weight of its losses"),
    ]
    dim = state[f"{_PIXELS}.transformer.level_embed"].shape[1]
    nothing = "zero, so that it adds nothing at first"
    supplied = {
        "regions.pixel_embedding.encoded.weight": (torch.eye(dim)[:, :, None, None], "the identity"),
        "regions.pixel_embedding.encoded.bias": (torch.zeros(dim), "the identity"),
        "regions.decoder.covered.layers.1.weight": (torch.zeros(dim, dim), nothing),
        "regions.decoder.covered.layers.1.bias": (torch.zeros(dim), nothing),
    }
    kept = {
        "regions.decoder.covered.layers.0.*": "of a part that adds nothing at first",
        "regions.select.one_to_many.*": "teaches in training alone, and the original has none",
    }
    needs = (
        f"MODEL.UNIPERCEIVER_V2.REGION: FIRST_SCALE: {first}, EXTRA_SCALES: {extra}, OBJECTNESS_PARTS: {classes}, "
        "CONVENTIONS: mask_dino, or mask_dino_mask2box where INITIALIZE_BOX_TYPE is mask2box"
    )
    return Plan("Mask DINO", rules, ("backbone.**", "regions.**"), needs, supplied, KEPT | kept)


def _encoder(heads: int, levels: int) -> list[Rule]:
    layer, ours = f"{_PIXELS}.transformer.encoder.layers.*", "regions.encoder.layers.*"
    return [
        Rule(f"{_PIXELS}.input_proj.**", "regions.project.projections.**"),
        Rule(f"{_PIXELS}.transformer.level_embed", "regions.project.scale_embedding"),
        *deformable_attention(f"{layer}.self_attn", f"{ours}.attention", heads, levels, reverse=False),
        Rule(f"{layer}.norm1.*", f"{ours}.attention_norm.*"),
        Rule(f"{layer}.linear1.*", f"{ours}.linear1.*"),
        Rule(f"{layer}.linear2.*", f"{ours}.linear2.*"),
        Rule(f"{layer}.norm2.*", f"{ours}.ffn_norm.*"),
        Rule(f"{_PIXELS}.adapter_1.weight", "regions.pixel_embedding.lateral.0.weight"),
        Rule(f"{_PIXELS}.adapter_1.norm.*", "regions.pixel_embedding.lateral.1.*"),
        Rule(f"{_PIXELS}.layer_1.weight", "regions.pixel_embedding.smooth.0.weight"),
        Rule(f"{_PIXELS}.layer_1.norm.*", "regions.pixel_embedding.smooth.1.*"),
        Rule(f"{_PIXELS}.mask_features.*", "regions.pixel_embedding.embed.*"),
    ]


def _selection(classes: int) -> list[Rule]:
    box_head, how = f"{_QUERIES}._bbox_embed.layers", f"{classes} classes are the parts of the objectness"
    mean = "the mean over the classes"
    return [
        Rule(f"{_QUERIES}.enc_output.*", "regions.select.project.0.*"),
        Rule(f"{_QUERIES}.enc_output_norm.*", "regions.select.project.1.*"),
        *(Rule(f"{_QUERIES}.class_embed.*", f"regions.{part}objectness.*", how) for part in ("", "select.")),
        *(Rule(f"{box_head}.**", f"regions.{part}.box_head.layers.**") for part in ("decoder", "select")),
        Rule(f"{_QUERIES}.mask_embed.layers.**", "regions.mask_embedding.layers.**"),
        Rule(f"{_QUERIES}.decoder_norm.*", "regions.norm.*"),
        Rule(f"{_QUERIES}.label_enc.weight", "regions.denoising_content", mean, lambda value: value.mean(0)),
    ]


def _decoder(heads: int, levels: int) -> list[Rule]:
    source, layer, ours = f"{_QUERIES}.decoder", f"{_QUERIES}.decoder.layers.*", "regions.decoder.layers.*"
    mlp, position = f"{source}.ref_point_head.layers", "regions.decoder.position.mlp.layers"
    shared, first = "shared with the first", "_bbox_embed.layers.{1}"
    return [
        Rule(f"{source}.norm.*", "", "shared with decoder_norm", like=f"{_QUERIES}.decoder_norm.{{0}}"),
        *(
            Rule(f"{part}.bbox_embed.*.layers.**", "", shared, like=f"{_QUERIES}.{first}")
            for part in (_QUERIES, source)
        ),
        Rule(f"{mlp}.0.weight", f"{position}.0.weight", "columns of x before those of y", swapped_coordinates),
        Rule(f"{mlp}.0.bias", f"{position}.0.bias"),
        Rule(f"{mlp}.1.*", f"{position}.1.*"),
        *packed_attention(f"{layer}.self_attn", f"{ours}.self_attention"),
        Rule(f"{layer}.self_attn.out_proj.*", f"{ours}.self_attention.o_proj.*"),
        Rule(f"{layer}.norm2.*", f"{ours}.self_attention_norm.*"),
        *deformable_attention(f"{layer}.cross_attn", f"{ours}.cross_attention", heads, levels, reverse=True),
        Rule(f"{layer}.norm1.*", f"{ours}.cross_attention_norm.*"),
        Rule(f"{layer}.linear1.*", f"{ours}.linear1.*"),
        Rule(f"{layer}.linear2.*", f"{ours}.linear2.*"),
        Rule(f"{layer}.norm3.*", f"{ours}.ffn_norm.*"),
    ]
