"""Hugging Face's Mask2Former: backbone, deformable encoder, pixel embeddings and mask embeddings of the region network.

Its decoder attends densely under masks and has no boxes, so our query selection and decoder keep their initial weights.
Its three scales are ours without a strided one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .backbones import KEPT, huggingface
from .conversions import deformable_attention
from .table import Plan, Rule

_PIXELS, _QUERIES = "model.pixel_level_module.decoder", "model.transformer_module"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return f"{_PIXELS}.level_embed" in state and f"{_QUERIES}.queries_features.weight" in state


def plan(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: int) -> Plan:
    """How a checkpoint's backbone and pixel decoder become ours. See the adapters' `Plan`."""
    levels, dim = state[f"{_PIXELS}.level_embed"].shape
    layer, ours, reverse = f"{_PIXELS}.encoder.layers.*", "regions.encoder.layers.*", "ours begin with the finest"
    rules = [
        *huggingface("model.pixel_level_module.encoder."),
        *(
            Rule(f"{_PIXELS}.input_projections.{n}.**", f"regions.project.projections.{levels - 1 - n}.**")
            for n in range(levels)
        ),
        Rule(f"{_PIXELS}.level_embed", "regions.project.scale_embedding", reverse, lambda value: value.flip(0)),
        *deformable_attention(f"{layer}.self_attn", f"{ours}.attention", heads, levels, reverse=True),
        Rule(f"{layer}.self_attn_layer_norm.*", f"{ours}.attention_norm.*"),
        Rule(f"{layer}.fc1.*", f"{ours}.linear1.*"),
        Rule(f"{layer}.fc2.*", f"{ours}.linear2.*"),
        Rule(f"{layer}.final_layer_norm.*", f"{ours}.ffn_norm.*"),
        Rule(f"{_PIXELS}.adapter_1.*.*", "regions.pixel_embedding.lateral.*.*"),
        Rule(f"{_PIXELS}.layer_1.*.*", "regions.pixel_embedding.smooth.*.*"),
        Rule(f"{_PIXELS}.mask_projection.*", "regions.pixel_embedding.embed.*"),
        Rule(f"{_QUERIES}.decoder.layernorm.*", "regions.norm.*"),
        Rule(f"{_QUERIES}.decoder.mask_predictor.mask_embedder.*.0.*", "regions.mask_embedding.layers.*.*"),
        Rule(f"{_QUERIES}.decoder.layers.**", "", "attends under masks, ours by sampling around boxes"),
        Rule(f"{_QUERIES}.level_embed.weight", "", "of its decoder"),
        Rule(f"{_QUERIES}.queries_*.weight", "", "queries come from tokens here"),
        Rule("class_predictor.*", "", "a choice between classes and none, by states of its decoder"),
        Rule("criterion.empty_weight", "", "a weight of its losses"),
    ]
    identity = "the identity"
    supplied = {
        "regions.pixel_embedding.encoded.weight": (torch.eye(dim)[:, :, None, None], identity),
        "regions.pixel_embedding.encoded.bias": (torch.zeros(dim), identity),
    }
    kept = dict.fromkeys(("regions.select.**", "regions.decoder.**"), "its decoder has other layers, without boxes")
    kept |= {"regions.objectness.*": "of states of the decoder", "regions.denoising_content": "it has no denoising"}
    needs = (
        f"MODEL.UNIPERCEIVER_V2.REGION: DIM: {dim}, FFN_DIM: {len(state[f'{_PIXELS}.encoder.layers.0.fc1.weight'])}, "
        "EXTRA_SCALES: 0, CONVENTIONS: mask_dino, which has its positions"
    )
    return Plan("Mask2Former", rules, ("backbone.**", "regions.**"), needs, supplied, KEPT | kept)
