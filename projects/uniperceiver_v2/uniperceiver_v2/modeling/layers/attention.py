"""Multi-head attention with PyTorch's fused kernel. All dense attention of the model uses it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate projections ("Attention is all you need", 3.2).

    Args:
        dim: width, a multiple of `heads`.
        heads: number of heads.
    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(projection.weight)  # the output has the scale of the values
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            query: [B,Q,dim]; key, value: [B,K,dim].
            mask: bool, True where attention is allowed, broadcastable to [B,heads,Q,K]. A query without
                any allowed key gives NaN, so mask keys and never whole queries.
        Returns:
            [B,Q,dim]
        """
        return self.attend(query, self.k_proj(key), self.v_proj(value), mask)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """`forward` for keys and values [B,K,dim] that are already projected."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q_proj(query), keys, values))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(attended.transpose(1, 2).flatten(2))
