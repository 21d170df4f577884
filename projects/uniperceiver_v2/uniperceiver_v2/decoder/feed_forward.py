"""Feed-forward networks of the unified decoder. All take where in the sequence which attributes stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .segments import Attributes

Layout = Sequence[tuple[int, Attributes]]  # (number of tokens, their attributes), in the order of the sequence


class DenseFeedForward(nn.Module):
    """BERT's feed-forward network: one for all tokens, blind to the attributes."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[B,L,d] to [B,L,d]; the lengths in `layout` sum to L."""
        return self.linear2(F.gelu(self.linear1(hidden)))
