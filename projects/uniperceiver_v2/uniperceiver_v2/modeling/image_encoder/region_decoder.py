"""The region network's decoder. It turns queries into proposals and refines their boxes from layer to layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP, DeformableAttention, MultiHeadAttention, box_position_encoding
from .boxes import box_overlaps
from .structures import FeatureMaps


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), both clamped to at least eps."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


class RegionDecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the image and a feed-forward network (post-norm)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, heads)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, heads, levels, points)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        features: FeatureMaps,
        mask: Tensor | None,
    ) -> Tensor:
        placed = queries + positions
        queries = self.self_attention_norm(queries + self.self_attention(placed, placed, queries, mask))
        attended = self.cross_attention(
            queries + positions, references, memory, features.spatial_shapes, features.valid_or_none
        )
        queries = self.cross_attention_norm(queries + attended)
        return self.ffn_norm(queries + self.linear2(F.relu(self.linear1(queries))))


class BoxPosition(nn.Module):
    """Position encoding of a query: an MLP on the sine encoding of its box (DAB-DETR, equation 3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.mlp = MLP(2 * dim, dim, dim, depth=2)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.mlp(box_position_encoding(boxes, self.dim // 2))


@torch.no_grad()
def covered_by_better(boxes: Tensor, objectness: Tensor) -> Tensor:
    """How far a more certain query covers each query: the largest IoU [B,Q] with the box of a query with a higher
    objectness, 0 if there is none. Of queries with equal objectness the first one is the more certain.

    Args:
        boxes: [B,Q,4].
        objectness: [B,Q] logits.
    """
    # By comparisons and not by a stable sort, which ONNX does not have.
    other, own = objectness.unsqueeze(1), objectness.unsqueeze(2)
    places = torch.arange(objectness.shape[1], device=objectness.device)
    better = (other > own) | ((other == own) & (places < places.unsqueeze(1)))  # [B,Q,Q]
    boxes = boxes.float()
    return (box_overlaps(boxes.unsqueeze(2), boxes.unsqueeze(1))[0] * better).amax(-1)


class RegionDecoder(nn.Module):
    """`depth` layers with iterative box refinement (Deformable DETR, A.4).

    Each layer corrects the box of the layer before, and a query's position encoding follows its box. The loss of a
    layer sends gradients to its own correction and to the one before, no further ("look forward twice", DINO 3.5).

    Before each layer, a query is told how far a more certain one covers it (`covered_by_better`), by an MLP. Attention
    among queries is an average. An average of two equal states is that state, so two queries of an object with equal
    states look to each other like one, and both keep a high objectness. What tells them apart has to come from their
    order (Relation Networks, section 3.4, learn duplicates from ranks as well).
    """

    def __init__(self, depth: int, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(RegionDecoderLayer(dim, heads, levels, points, ffn_dim) for _ in range(depth))
        self.position = BoxPosition(dim)
        self.covered = MLP(1, dim, dim, depth=2)
        self.box_head = MLP(dim, dim, 4, depth=3)
        nn.init.zeros_(self.box_head.layers[-1].weight)
        nn.init.zeros_(self.box_head.layers[-1].bias)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        features: FeatureMaps,
        mask: Tensor | None = None,
        objectness: Tensor | None = None,
        judge: Callable[[Tensor], Tensor] | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            queries: [B,Q,dim], the contents. The ordinary queries are the last O.
            boxes: [B,Q,4], the initial boxes.
            memory: [B,S,dim] encoded tokens of `features`.
            mask: bool, True where attention among queries is allowed, broadcastable to [B,heads,Q,Q].
            objectness: [B,O] logits with which the ordinary queries were selected. If None, no query is told whether
                another one covers it.
            judge: the objectness [B,O] of states [B,O,dim].
            normalise: of the states before boxes are predicted; None to predict them by the corrections.
        Returns:
            hidden states [layers,B,Q,dim] and refined boxes [layers,B,Q,4].
        """
        scales = features.extents.repeat(1, 1, 2)[:, None]  # [B,1,L,4]
        hidden, refined = [], []
        reference, undetached = boxes.detach(), boxes
        for layer in self.layers:
            if objectness is not None:
                queries = queries + self._covered(reference, objectness)
            positions = self.position(reference)
            queries = layer(queries, positions, reference[:, :, None] * scales, memory, features, mask)
            correction = self.box_head(queries)
            hidden.append(queries)
            shown = correction if normalise is None else self.box_head(normalise(queries))
            refined.append(torch.sigmoid(shown + inverse_sigmoid(undetached)))
            undetached = torch.sigmoid(correction + inverse_sigmoid(reference))
            reference = undetached.detach()
            if objectness is not None and layer is not self.layers[-1]:
                with torch.no_grad():
                    objectness = judge(queries[:, -objectness.shape[1] :].detach())
        return torch.stack(hidden), torch.stack(refined)

    def _covered(self, boxes: Tensor, objectness: Tensor) -> Tensor:
        """What queries with boxes [B,Q,4] are told of better ones, [B,Q,dim]. No denoising query counts as covered."""
        ordinary = objectness.shape[1]
        covered = covered_by_better(boxes[:, -ordinary:], objectness)
        return self.covered(F.pad(covered, (boxes.shape[1] - ordinary, 0)).unsqueeze(-1))
