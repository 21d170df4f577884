"""RoBERTa word by word, for generation.

Hugging Face's modules spend half of a small model's time outside arithmetic. This module uses their weights without
their code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import CausalLayer, KeyValueBuffer, causal_mask, normalisation

NORM_FIRST = "roberta-prelayernorm"  # a norm before each part of a layer, and one behind the last layer
FIRST_POSITIONS = {
    "bert": lambda config: 0,
    **dict.fromkeys(("roberta", "xlm-roberta", NORM_FIRST), lambda config: config.pad_token_id + 1),
}


class CausalRoberta:
    """A Hugging Face RoBERTa (of either order of norms) or BERT with causal attention, for evaluation.

    It shares or copies the model's weights.

    Args:
        model: a model that passes :func:`reads_causally`.
    """

    def __init__(self, model: nn.Module):
        embeddings, config = model.embeddings, model.config
        first = FIRST_POSITIONS[config.model_type](config)
        self._words = embeddings.word_embeddings.weight.detach()
        # All tokens have token type 0.
        added = embeddings.position_embeddings.weight[first:] + embeddings.token_type_embeddings.weight[0]
        self._positions = added.detach()
        self._norm = normalisation(embeddings.LayerNorm)
        norm_first = config.model_type == NORM_FIRST
        self._last_norm = normalisation(model.LayerNorm) if norm_first else None
        self.layers = [_prepare(layer, config.num_attention_heads, norm_first) for layer in model.encoder.layer]

    def __call__(self, token_ids: Tensor, past: KeyValueBuffer) -> Tensor:
        """The last hidden states [B,T,width] of further tokens.

        Args:
            token_ids: [B,T], without padding, behind the tokens in `past`.
            past: keys and values of the tokens so far; those of the new tokens are added.
        """
        start, new = past.length, token_ids.shape[1]
        hidden = F.embedding(token_ids, self._words) + self._positions[start : start + new]
        hidden = F.layer_norm(hidden, *self._norm)
        mask = causal_mask(new, start, token_ids.device)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, past, index, mask)
        return hidden if self._last_norm is None else F.layer_norm(hidden, *self._last_norm)


def reads_causally(model: nn.Module) -> bool:
    """Whether :class:`CausalRoberta` computes the same function as this Hugging Face model with a causal mask."""
    config = model.config
    positions = getattr(config, "position_embedding_type", "absolute")  # a field of older versions
    return config.model_type in FIRST_POSITIONS and positions == "absolute" and not config.add_cross_attention


def _prepare(layer: nn.Module, heads: int, norm_first: bool) -> CausalLayer:
    attention, output = layer.attention, layer.output
    norms = (attention, layer.intermediate) if norm_first else (attention.output, output)
    projections = attention.self.query, attention.self.key, attention.self.value, attention.output.dense
    first, second = layer.intermediate.dense, output.dense
    return CausalLayer(
        heads,
        projections,
        ((first.weight, first.bias), (second.weight, second.bias)),
        layer.intermediate.intermediate_act_fn,
        [part.LayerNorm for part in norms],
        norm_first,
    )
