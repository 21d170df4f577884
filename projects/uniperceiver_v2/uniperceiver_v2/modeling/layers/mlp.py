"""Multi-layer perceptron with ReLU between its layers (DETR's prediction heads)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` linear layers from [..., dim_in] to [..., dim_out], with width `dim_hidden` in between."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, depth: int):
        super().__init__()
        widths = [dim_in] + [dim_hidden] * (depth - 1) + [dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
