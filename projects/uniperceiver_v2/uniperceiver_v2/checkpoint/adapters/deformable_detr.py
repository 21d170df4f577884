"""Hugging Face's Deformable DETR: backbone, deformable encoder, decoder layers and heads of the region network.

The layers of encoder and decoder are the same functions as ours. What does not correspond:

- There each decoder layer has heads of its own. Ours are shared by all layers and start as the last layer's.
- There class heads read a state as it is, ours normalise it once more. So the objectness starts near the original's.
- A query's content and position there follow from its first box; here from its token, and from its box in each layer.
  Both keep their initial weights, and so do the parts for masks, which it does not have.
- Tokens within 0.01 of the image's border select nothing there.
- A model without two stages fills no query selection.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .backbones import KEPT, backbone_rules, huggingface
from .table import Plan, Rule

_BACKBONE = "model.backbone.conv_encoder.model."
_NEW = "has no counterpart there"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "model.level_embed" in state and "model.decoder.layers.0.encoder_attn.sampling_offsets.weight" in state


def plan(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: int) -> Plan:
    """How a checkpoint's backbone and Transformers become ours. See the adapters' `Plan`."""
    two_stages = "model.enc_output.weight" in state
    is_own = f"{_BACKBONE}embedder.embedder.convolution.weight" in state
    rules = [
        *(huggingface(_BACKBONE) if is_own else backbone_rules(state, _BACKBONE)),
        *_transformers(),
        *(rule for head in _HEADS for rule in _heads(state, head, two_stages)),
    ]
    kept = dict.fromkeys(("regions.mask_embedding.**", "regions.pixel_embedding.**"), "it has no masks")
    without = (
        "regions.denoising_content",
        "regions.norm.*",
        "regions.decoder.position.**",
        "regions.decoder.covered.**",
    )
    kept |= dict.fromkeys((*without, "regions.select.content.**", "regions.select.one_to_many.*"), _NEW)
    if not two_stages:
        kept["regions.select.**"] = "it has one stage"
    dim = state["model.level_embed"].shape[1]
    zero = {name: torch.zeros_like(own[name]) for name in own if name.startswith("regions.decoder.covered.layers.1.")}
    supplied = {name: (value, "zero, so that it adds nothing at first") for name, value in zero.items()}
    classes = next(len(value) for key, value in state.items() if "class_embed." in key)
    needs = (
        f"MODEL.UNIPERCEIVER_V2.REGION: DIM: {dim}, FFN_DIM: {len(state['model.encoder.layers.0.fc1.weight'])}, "
        f"OBJECTNESS_PARTS: {classes}; BACKBONE.NORM: FrozenBN"
    )
    return Plan("Deformable DETR", rules, ("backbone.**", "regions.**"), needs, supplied, KEPT | kept)


# The heads, and ours in the decoder and in query selection.
_HEADS = {"class_embed": ("objectness", "select.objectness"), "bbox_embed": ("decoder.box_head", "select.box_head")}


def _heads(state: Mapping[str, Tensor], head: str, two_stages: bool) -> list[Rule]:
    """Rules of a head of all layers. The model and its decoder share heads, and often layers do: files have one name of
    a shared head or all of them. With two stages, query selection has the head behind the last layer's."""
    layers = sum(key.endswith(".encoder_attn.value_proj.bias") for key in state)
    found: dict[int, list[str]] = {}
    for prefix in (f"{head}.", f"model.decoder.{head}."):
        for number in {int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)}:
            found.setdefault(number, []).append(f"{prefix}{number}")
    wanted = (layers - 1, layers) if two_stages else (layers - 1,)
    used = [number if number in found else min(found) for number in wanted]
    how = "classes are the parts of the objectness" if head == "class_embed" else ""
    rules = []
    for number, (first, *others) in found.items():
        rules += [Rule(f"{other}.**", "", f"shared with {first}", like=f"{first}.{{0}}") for other in others]
        ours = [target for target, place in zip(_HEADS[head], used, strict=False) if place == number]
        rules += [Rule(f"{first}.**", f"regions.{target}.**", how) for target in ours]
        if not ours:
            rules.append(Rule(f"{first}.**", "", "of another layer: ours are shared"))
    return rules


def _transformers() -> list[Rule]:
    encoder, decoder = "model.encoder.layers.*", "model.decoder.layers.*"
    ours, of_decoder = "regions.encoder.layers.*", "regions.decoder.layers.*"
    return [
        Rule("model.input_proj.**", "regions.project.projections.**"),
        Rule("model.level_embed", "regions.project.scale_embedding"),
        Rule(f"{encoder}.self_attn.**", f"{ours}.attention.**"),
        Rule(f"{encoder}.self_attn_layer_norm.*", f"{ours}.attention_norm.*"),
        *_feed_forward(encoder, ours),
        *(Rule(f"{decoder}.self_attn.{name}.*", f"{of_decoder}.self_attention.{name}.*") for name in _PROJECTIONS),
        Rule(f"{decoder}.self_attn.out_proj.*", f"{of_decoder}.self_attention.o_proj.*"),
        Rule(f"{decoder}.self_attn_layer_norm.*", f"{of_decoder}.self_attention_norm.*"),
        Rule(f"{decoder}.encoder_attn.**", f"{of_decoder}.cross_attention.**"),
        Rule(f"{decoder}.encoder_attn_layer_norm.*", f"{of_decoder}.cross_attention_norm.*"),
        *_feed_forward(decoder, of_decoder),
        Rule("model.enc_output.*", "regions.select.project.0.*"),
        Rule("model.enc_output_norm.*", "regions.select.project.1.*"),
        Rule("model.pos_trans.*", "", "queries take their contents from tokens here"),
        Rule("model.pos_trans_norm.*", "", "queries take their contents from tokens here"),
        Rule("model.query_position_embeddings.*", "", "queries come from tokens here"),
        Rule("model.reference_points.*", "", "queries come from tokens here"),
    ]


_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _feed_forward(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.fc1.*", f"{target}.linear1.*"),
        Rule(f"{source}.fc2.*", f"{target}.linear2.*"),
        Rule(f"{source}.final_layer_norm.*", f"{target}.ffn_norm.*"),
    ]
