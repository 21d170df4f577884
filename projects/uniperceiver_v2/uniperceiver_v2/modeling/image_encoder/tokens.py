"""The image's tokens for the unified decoder: proposal tokens, equation (2), and global tokens, equation (3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import MultiHeadAttention, box_position_encoding, map_position_encoding
from .structures import Proposals, mean_of_valid, on_padded_map, shares_inside


class ProposalFusion(nn.Module):
    """q^proposal = q^sem + B(q^box) + M(q^mask), equation (2). A linear map brings q^sem to the decoder's width.

    B is the sine encoding of the box followed by a linear map. M is average pooling of the mask probabilities to 28×28
    followed by a linear map.
    """

    MASK_SIZE = 28
    BOX_ENCODING = 64  # sines and cosines per coordinate

    def __init__(self, region_dim: int, dim: int, channels: int):
        super().__init__()
        self.semantics = nn.Linear(region_dim, dim)
        self.appearance = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim))
        self.box = nn.Linear(4 * self.BOX_ENCODING, dim)
        self.mask = nn.Linear(self.MASK_SIZE**2, dim)
        for geometry in (self.box, self.mask):  # in the beginning a proposal token is its semantics
            nn.init.zeros_(geometry.weight)
            nn.init.zeros_(geometry.bias)

    def forward(self, proposals: Proposals) -> Tensor:
        """The proposal tokens [B,O,dim]."""
        box = box_position_encoding(proposals.boxes, self.BOX_ENCODING)
        mask = self._pooled_masks(proposals).flatten(2)
        appearance = self.appearance(proposals.appearance)
        return self.semantics(proposals.semantics) + appearance + self.box(box) + self.mask(mask)

    def _pooled_masks(self, proposals: Proposals) -> Tensor:
        """Mask probabilities over each image's own extent, average-pooled to [B,O,28,28]. Masks that end at their
        boxes are zero outside.

        Pooling and cutting at a box are both separable. So each mask is multiplied by two small matrices, one for its
        rows and one for its columns, instead of several passes over all pixels.
        """
        boxes = on_padded_map(proposals.boxes.detach(), proposals.extent)
        probability = proposals.masks.sigmoid()
        extent = torch.ones_like(boxes[:, 0, :2]) if proposals.extent is None else proposals.extent
        matrices = []
        for axis, size in zip((1, 0), probability.shape[-2:], strict=True):
            pooling = self._pooling(extent[:, axis], size).unsqueeze(1)
            if proposals.masks_in_boxes:
                pooling = pooling * shares_inside(boxes[..., axis], boxes[..., 2 + axis], size).unsqueeze(-2)
            matrices.append(pooling.to(probability.dtype))
        rows, columns = matrices
        return rows @ (probability @ columns.transpose(-2, -1))

    def _pooling(self, extent: Tensor, size: int) -> Tensor:
        """Matrices [B,28,size] that average along one axis as `adaptive_avg_pool` does over the image's own pixels.

        Args:
            extent: [B], the image's share of the padded map along this axis.
            size: the number of pixels of the padded map along this axis.
        """
        steps = torch.arange(self.MASK_SIZE, device=extent.device)
        # The pixels that the image touches: a border pixel may lie half in padding.
        own = (extent * size - 1e-3).ceil().clamp(1, size).long()[:, None]
        first, last = steps * own // self.MASK_SIZE, ((steps + 1) * own + self.MASK_SIZE - 1) // self.MASK_SIZE
        pixels = torch.arange(size, device=extent.device)
        pooled = (pixels >= first[..., None]) & (pixels < last[..., None])
        return pooled / (last - first)[..., None]


class AttentionPools(nn.Module):
    """M' attention pools of a map, each like CLIP's `AttentionPool2d`: keys and values are the map's tokens with their
    positions, and the query is the mean of the map plus a vector of its own.

    The M' pools are computed as one attention with M' queries.
    """

    def __init__(self, dim: int, heads: int, count: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        self.attention = MultiHeadAttention(dim, heads)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Pools [B,M',dim] of tokens with positions [B,S,dim]; `valid` is [B,S] bool, False at padding."""
        query = mean_of_valid(tokens, valid).unsqueeze(1) + self.queries
        return self.attention(query, tokens, tokens, valid[:, None, None])


class GlobalTokens(nn.Module):
    """q^global = Concat({AttnPool_i(F_L)}, Flatten(F_L)), equation (3). F_L is the backbone's own last map.

    A linear map and a normalisation bring F_L to the decoder's width, because backbones differ in the scale of their
    features. Then each token gets its position.

    Args:
        channels: of F_L.
        dim: d, width of the unified decoder.
        heads: of the pools' attention.
        pools: M'.
    """

    def __init__(self, channels: int, dim: int, heads: int, pools: int):
        super().__init__()
        self.project = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)
        self.pools = AttentionPools(dim, heads, pools)

    def forward(self, last: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            last: [B,channels,h,w], the map F_L.
            valid: [B,h,w] bool, False at padding.
        Returns:
            the global tokens [B,M'+h·w,dim], and `valid` [B,M'+h·w] of them.
        """
        tokens = self.norm(self.project(last.flatten(2).transpose(1, 2)))
        tokens = tokens + map_position_encoding(valid, tokens.shape[-1]).flatten(1, 2)
        valid = valid.flatten(1)
        pooled = self.pools(tokens, valid)
        return torch.cat((pooled, tokens), dim=1), torch.cat((valid.new_ones(pooled.shape[:2]), valid), dim=1)
