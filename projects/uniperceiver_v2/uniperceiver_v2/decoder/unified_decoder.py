"""The unified decoder: one Transformer for all tasks and modalities (Uni-Perceiver v2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..layers import MultiHeadAttention
from .feed_forward import DenseFeedForward, Layout
from .segments import Attributes, Segment


@dataclass
class Representations:
    """The decoder's outputs.

    Attributes:
        spe: [B,d], <SPE>'s, which stands for the whole input.
        segments: [B,T,d] for each segment of the input.
    """

    spe: Tensor
    segments: list[Tensor]


class UnifiedDecoderLayer(nn.Module):
    """Self-attention and a feed-forward network of BERT's shape, each normalised before it (pre-norm)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = DenseFeedForward(dim, ffn_dim)

    def forward(self, hidden: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
        normalised = self.attention_norm(hidden)
        hidden = hidden + self.attention(normalised, normalised, normalised, mask)
        return hidden + self.ffn(self.ffn_norm(hidden), layout)


class UnifiedDecoder(nn.Module):
    """g of equation (6).

    Args:
        depth: number of layers, 6 in the paper.
        dim, heads, ffn_dim: BERT-base's 768, 12 and 3072 in the paper.
    """

    @configurable
    def __init__(self, *, depth: int, dim: int, heads: int, ffn_dim: int):
        super().__init__()
        self.spe = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in ("image", "text")})
        self.layers = nn.ModuleList(UnifiedDecoderLayer(dim, heads, ffn_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self._start_as_pooling()

    def _start_as_pooling(self) -> None:
        """Each layer starts by adding the mean of what it sees to every token. What image and text encoder have in
        common is then in common behind the decoder too, and training refines it; from a random start the first steps
        make all candidates equal (docs/architecture.md)."""
        for layer in self.layers:
            for projection in (layer.attention.v_proj, layer.attention.o_proj):
                nn.init.eye_(projection.weight)
            nn.init.zeros_(layer.ffn.linear2.weight)
            nn.init.zeros_(layer.ffn.linear2.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.UNIPERCEIVER_V2
        return {
            "depth": node.DECODER.LAYERS,
            "dim": node.EMBED_DIM,
            "heads": node.DECODER.HEADS,
            "ffn_dim": node.DECODER.FFN_DIM,
        }

    def forward(self, segments: Sequence[Segment]) -> Representations:
        """Decodes <SPE> followed by the segments; all tokens see each other, padding is seen by none."""
        first = segments[0]
        spe = self.spe.expand(first.tokens.shape[0], 1, -1)
        tokens = [self.input_norms[s.attributes.modality](s.tokens) for s in segments]
        hidden = torch.cat([spe, *tokens], dim=1)
        layout: Layout = [
            (1, Attributes("special", first.attributes.role, first.attributes.task)),
            *((s.tokens.shape[1], s.attributes) for s in segments),
        ]
        mask = self._mask(segments)
        for layer in self.layers:
            hidden = layer(hidden, mask, layout)
        spe_out, *outputs = self.norm(hidden).split([length for length, _ in layout], dim=1)
        return Representations(spe_out[:, 0], outputs)

    @staticmethod
    def _mask(segments: Sequence[Segment]) -> Tensor | None:
        """[B,1,1,1+L] bool, or None where nothing is padding."""
        if all(s.valid is None for s in segments):
            return None
        valid = [
            s.tokens.new_ones(s.tokens.shape[:2], dtype=torch.bool) if s.valid is None else s.valid for s in segments
        ]
        return torch.cat([valid[0].new_ones(len(valid[0]), 1), *valid], dim=1)[:, None, None]
