"""The likelihood of all tasks: cos(g∘f(x), g∘f(y)) / τ over a set of candidates (equations 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Likelihood(nn.Module):
    """Unnormalised joint log-likelihoods, with one learned temperature for all tasks.

    Args:
        temperature: the initial τ. Training cannot push τ below 0.01, as in CLIP.
    """

    MIN_TEMPERATURE = 0.01

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """τ"""
        with torch.no_grad():  # clamps the parameter, as a clamped τ would get no gradient to leave the bound
            self.log_scale.clamp_(max=-math.log(self.MIN_TEMPERATURE))
        return torch.exp(-self.log_scale)

    def forward(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """log P(x, y) up to a constant for inputs [...,d] and candidates [C,d]: [...,C] in float32."""
        return self.of_directions(inputs, directions(candidates))

    def of_directions(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """`forward` for candidates [C,d] that :func:`directions` has normalised before.

        Normalising costs as much as the product, so a caller with the same candidates for every batch does it once.
        """
        with torch.autocast(inputs.device.type, enabled=False):  # autocast would compute the product in half precision
            return F.normalize(inputs.float(), dim=-1) @ candidates.T / self.temperature

    @torch.no_grad()
    def against(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from inputs [...,d] to :meth:`of_directions` with these candidates, without gradients.

        Generation calls it for every word. It reads τ once, here.
        """
        scale = 1 / self.temperature

        @torch.no_grad()
        def likelihoods(inputs: Tensor) -> Tensor:
            with torch.autocast(inputs.device.type, enabled=False):
                return (F.normalize(inputs.float(), dim=-1) * scale) @ candidates.T

        return likelihoods


def directions(representations: Tensor) -> Tensor:
    """Representations [...,d] scaled to length 1, in float32."""
    return F.normalize(representations.float(), dim=-1)
