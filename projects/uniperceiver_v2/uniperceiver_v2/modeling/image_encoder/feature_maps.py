"""Projections of the backbone's maps: to the L scales of the region network and to the pixel embeddings of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import group_norm, map_position_encoding
from .structures import FeatureMaps, image_extent, resize_valid


class FeatureProjection(nn.Module):
    """Projects backbone maps to one width and adds coarser scales by strided convolutions (Deformable DETR, 4.1).

    Args:
        channels: channels of the backbone maps that become scales, finest first.
        dim: width of the region network.
        extra_scales: the number of coarser scales.
        position_in_pixel: see `Conventions`.
    """

    def __init__(self, channels: list[int], dim: int, extra_scales: int = 1, position_in_pixel: float = 0.5):
        super().__init__()
        self.position_in_pixel = position_in_pixel
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, kernel_size=1), group_norm(dim)) for width in channels
        )
        for width in ([channels[-1]] + [dim] * extra_scales)[:extra_scales]:
            self.projections.append(
                nn.Sequential(nn.Conv2d(width, dim, kernel_size=3, stride=2, padding=1), group_norm(dim))
            )
        self.scale_embedding = nn.Parameter(torch.randn(len(self.projections), dim) * 0.02)

    def forward(
        self, maps: list[Tensor], valid: Tensor, has_padding: bool = True, detail: Tensor | None = None
    ) -> FeatureMaps:
        """
        Args:
            maps: [B,C_l,h_l,w_l] backbone maps, finest first.
            valid: [B,H,W] bool of the batch of images.
            has_padding: False if `valid` is all True. Positions are then computed once for all images.
            detail: [B,dim,h,w], added to the finest scale. It may reach a row or a column beyond it.
        """
        batch = valid.shape[0]  # torch.export would make a constant of len(valid)
        valid = valid if has_padding else valid[:1]
        scales = [project(x) for project, x in zip(self.projections, maps, strict=False)]
        for number, project in enumerate(self.projections[len(maps) :]):
            scales.append(project(scales[-1] if number else maps[-1]))
        if detail is not None:
            height, width = scales[0].shape[-2:]
            scales[0] = scales[0] + detail[..., :height, :width]
        shapes = [tuple(x.shape[-2:]) for x in scales]
        valids = [resize_valid(valid, shape) for shape in shapes]
        dim = scales[0].shape[1]
        positions = [
            map_position_encoding(v, dim, self.position_in_pixel).flatten(1, 2) + embedding
            for v, embedding in zip(valids, self.scale_embedding, strict=True)
        ]
        extents = [image_extent(v) for v in valids]
        return FeatureMaps(
            tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in scales], dim=1),
            positions=torch.cat(positions, dim=1),
            valid=torch.cat([v.flatten(1) for v in valids], dim=1).expand(batch, -1),
            spatial_shapes=shapes,
            extents=torch.stack(extents, dim=1).expand(batch, -1, -1),
            has_padding=has_padding,
        )


class PixelEmbedding(nn.Module):
    """Pixel embeddings for masks: the finest backbone map plus the encoder's finest scale, upsampled, then smoothed
    (Mask DINO's pixel decoder).

    Args:
        channels: channels of the finest backbone map.
        dim: width of the region network.
        mask_dim: width of the embeddings.
    """

    def __init__(self, channels: int, dim: int, mask_dim: int):
        super().__init__()
        self.lateral = nn.Sequential(nn.Conv2d(channels, mask_dim, kernel_size=1, bias=False), group_norm(mask_dim))
        self.encoded = nn.Conv2d(dim, mask_dim, kernel_size=1)
        self.smooth = nn.Sequential(
            nn.Conv2d(mask_dim, mask_dim, kernel_size=3, padding=1, bias=False), group_norm(mask_dim), nn.ReLU()
        )
        self.embed = nn.Conv2d(mask_dim, mask_dim, kernel_size=1)

    def forward(self, finest: Tensor, encoded: Tensor) -> Tensor:
        """
        Args:
            finest: [B,channels,h,w], the finest backbone map.
            encoded: [B,dim,h',w'], the encoder's finest scale.
        Returns:
            [B,mask_dim,h,w]
        """
        coarse = F.interpolate(self.encoded(encoded), size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.embed(self.smooth(self.lateral(finest) + coarse))
