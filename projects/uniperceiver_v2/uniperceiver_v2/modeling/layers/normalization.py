"""Replacements for batch normalisation. Its running statistics would mix the batches of different tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters (detectron2.layers.FrozenBatchNorm2d).

    All four are buffers with the names that BatchNorm2d uses, so that its checkpoints load.
    """

    def __init__(self, source: nn.BatchNorm2d):
        super().__init__()
        self.eps = source.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(source, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1).to(x.dtype), x, scale.view(1, -1, 1, 1).to(x.dtype))


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or with fewer so that a group has at least four channels."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


def replace_batch_norm(model: nn.Module, norm: str) -> nn.Module:
    """Replaces every BatchNorm2d below `model`, in place.

    Args:
        norm: "" (replaces none), "FrozenBN" or "GN".
    Raises:
        ValueError: `norm` has another value.
    """
    if norm == "":
        return model
    if norm not in ("FrozenBN", "GN"):
        raise ValueError(f'unknown normalisation {norm!r}, expected "", "FrozenBN" or "GN"')
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = FrozenBatchNorm2d(child) if norm == "FrozenBN" else group_norm(child.num_features)
            setattr(model, name, new)
        else:
            replace_batch_norm(child, norm)
    return model
