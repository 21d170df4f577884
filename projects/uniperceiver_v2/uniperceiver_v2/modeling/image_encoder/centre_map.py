"""A map of the finest stride that says where objects of each name or phrase have their centres.

Source: Zhou et al., Objects as Points, 2019.

It serves training. A region network learns late what its states have to know of a shape or a colour; a map of
centres learns it soon, and hands it on, as the same features enter the region network's finest scale.

Shapes: B images, C channels of the map, d the width of texts, T texts, N objects of an image at most.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import group_norm
from ..likelihood import directions
from .structures import RegionTargets, on_padded_map


class FineMap(nn.Module):
    """A map of the finest stride, with a top-down path from all maps as in FPN (Lin et al., CVPR 2017).

    Args:
        channels: channels of the backbone maps, finest first.
        width: C.
    """

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(of_map, width, kernel_size=1) for of_map in channels)
        self.smooth = nn.Sequential(*convolution(width, width), nn.ReLU(), *convolution(width, width), nn.ReLU())

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[B,C,h,w] at the size of the first of the maps [B,C_l,h_l,w_l], finest first."""
        *finer, top = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for lateral in reversed(finer):
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        return self.smooth(top)


def convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """A normalised convolution of 3×3, or of more for a stride above 2, so that it skips no cell."""
    side = max(3, stride // 2 * 2 + 1)
    weights = nn.Conv2d(channels, width, kernel_size=side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(weights, group_norm(width))


class CentreMap(nn.Module):
    """Compares each cell of a fine map with texts.

    Args:
        channels: C.
        dim: d.
    """

    RARE = -3.0  # the initial logit: few cells are centres

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.features = nn.Conv2d(channels, dim, kernel_size=1)
        self.bias = nn.Parameter(torch.tensor(self.RARE))

    def forward(self, fine: Tensor, texts: Tensor) -> Tensor:
        """Logits [B,T,h,w] in float32, that a cell of the map [B,C,h,w] is a centre of what texts [T,d] name."""
        features = self.features(fine).float()
        with torch.autocast(fine.device.type, enabled=False):
            return torch.einsum("bdhw,td->bthw", features, directions(texts)) + self.bias.float()

    def loss(self, fine: Tensor, texts: Tensor, targets: RegionTargets, true: Tensor, asked: Tensor) -> Tensor:
        """The sum of the losses of a batch.

        Args:
            fine: [B,C,h,w]; texts: [T,d].
            targets: the objects.
            true: [B,N,T] bool, which texts name an object.
            asked: [B,T] bool, the texts of which all objects of an image are known. Others have no loss there.
        """
        logits = self(fine, texts)
        heat = centre_heat(on_padded_map(targets.boxes, targets.extent), true, tuple(fine.shape[-2:]))
        return (centre_losses(logits, heat) * asked[..., None, None]).sum()


def centre_heat(boxes: Tensor, true: Tensor, size: tuple[int, int]) -> Tensor:
    """How near each cell is to a centre: 1 at the cell of a centre, and a Gaussian around it that is wider for larger
    boxes.

    Args:
        boxes: [B,N,4], (cx, cy, w, h) in 0..1 of the map.
        true: [B,N,T] bool, which texts name an object.
        size: (h, w) of the map.
    Returns:
        [B,T,h,w], 0 where no object has the text.
    """
    height, width = size
    along_x, along_y = (_along(boxes[..., axis, None], boxes[..., axis + 2, None], size[1 - axis]) for axis in (0, 1))
    heat = boxes.new_zeros(len(boxes), true.shape[-1], height, width)
    for place in range(true.shape[1]):  # all objects at once would take N times the memory
        around = along_y[:, place, :, None] * along_x[:, place, None]
        heat = torch.maximum(heat, around[:, None] * true[:, place, :, None, None])
    return heat


def _along(centre: Tensor, side: Tensor, cells: int) -> Tensor:
    """[B,N,cells], how near each cell of an axis is to the cell of a centre [B,N,1] in 0..1, by the side [B,N,1]."""
    middle = (centre * cells).floor().clamp(0, cells - 1)
    spread = (side * (cells / 6)).clamp(min=0.5)
    return torch.exp(-(((torch.arange(cells, device=centre.device) - middle) / spread) ** 2) / 2)


def centre_losses(logits: Tensor, heat: Tensor) -> Tensor:
    """The focal loss of each cell (Objects as Points, equation 1): cells near a centre weigh less as background.

    Args:
        logits, heat: of any shape. Heat is 1 at centres.
    """
    right, wrong = F.logsigmoid(logits), F.logsigmoid(-logits)
    centre = heat == 1
    positive = right * wrong.exp() ** 2 * centre
    negative = wrong * right.exp() ** 2 * (1 - heat) ** 4 * ~centre
    return -(positive + negative)
