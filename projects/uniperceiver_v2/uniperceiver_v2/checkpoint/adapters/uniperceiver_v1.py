"""Uni-Perceiver v1's published decoder (base, "torch"), where ours has dense networks.

Both have norms before each part. v1 has twelve layers and scales what each part adds (LayerScale): the scales are
multiplied into the layer before them. Layers beyond the depth of ours are left out, so only with twelve layers do both
compute the same. v1 reads byte pairs of its own and patches of pixels, ours the tokens of RoBERTa and of a detector. So
of the embeddings only their norms are taken, which bring tokens to the size that the layers know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .conversions import packed_attention
from .table import Plan, Rule

OF_DECODER = True  # the part of our model that it fills
_LAYERS = "fused_encoder.layers"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return f"{_LAYERS}.0.self_attn.in_proj_weight" in state


def plan(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: int) -> Plan:
    """How v1's decoder becomes ours. See the adapters' `Plan`."""
    depth = 1 + max(int(key.split(".")[1]) for key in own if key.startswith("layers."))
    count = 1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"{_LAYERS}."))
    rules = [rule for layer in range(min(depth, count)) for rule in _layer(state, layer)]
    rules += [Rule(f"{_LAYERS}.{layer}.**", "", f"our decoder has {depth} layers") for layer in range(depth, count)]
    rules += [
        Rule("token_embed.embeddings_norm.*", "input_norms.text.*"),
        Rule("video_embed.embeddings_norm.*", "input_norms.image.*"),
        Rule("loss_prepare.ln_post.*", "norm.*"),
        Rule("loss_prepare.proj.*", "", "ours compares the outputs of the norm"),
        Rule("loss_prepare.logit_scale_*", "", "a temperature for each task, of which ours has one"),
        Rule("token_embed.embeddings.weight", "", "of other byte pairs than RoBERTa's"),
        Rule("token_embed.embeddings_pos.**", "", "the text encoder has positions of its own"),
        Rule("token_embed.embeddings_token_*.**", "", "ours has no types of tokens"),
        Rule("video_embed.embeddings.*", "", "of patches of pixels; ours sees the tokens of a detector"),
        Rule("video_embed.embeddings_st_pos.**", "", "of the same patches"),
        Rule("visual_embed.**", "", "of the same patches"),
        Rule("video_embed.embeddings_type.**", "", "ours has no types of tokens"),
    ]
    layer = f"{_LAYERS}.0"
    width, hidden = state[f"{layer}.linear2.weight"].shape
    needs = (
        f"MODEL.UNIPERCEIVER_V2.EMBED_DIM: {width}, DECODER: LAYERS: {count}, FFN_DIM: {hidden}, EXPERTS: 0 and, of "
        f"the published model, HEADS: 12"
    )
    kept = {"spe": "v1's <SPE> is a row of its embeddings whose number its file does not say"}
    return Plan("Uni-Perceiver v1", rules, ("**",), needs, kept=kept)


def _layer(state: Mapping[str, Tensor], number: int) -> list[Rule]:
    theirs, ours = f"{_LAYERS}.{number}", f"layers.{number}"
    rules = [
        *packed_attention(f"{theirs}.self_attn", f"{ours}.attention"),
        Rule(f"{theirs}.norm1.*", f"{ours}.attention_norm.*"),
        Rule(f"{theirs}.norm2.*", f"{ours}.ffn_norm.*"),
        Rule(f"{theirs}.linear1.*", f"{ours}.ffn.linear1.*"),
    ]
    parts = (("gamma_1", "self_attn.out_proj", "attention.o_proj"), ("gamma_2", "linear2", "ffn.linear2"))
    for scale, before, target in parts:
        gamma = state.get(f"{theirs}.{scale}")  # a model without LayerScale has none
        how, convert = (f"times {scale}", _times(gamma)) if gamma is not None else ("", None)
        rules.append(Rule(f"{theirs}.{before}.*", f"{ours}.{target}.*", how, convert))
        rules.append(Rule(f"{theirs}.{scale}", "", f"multiplied into {before}"))
    return rules


def _times(gamma: Tensor) -> Callable[[Tensor], Tensor]:
    """Scales the rows of a weight [d,n], or a bias [d]."""
    return lambda value: value * gamma.view(-1, *[1] * (value.dim() - 1))
