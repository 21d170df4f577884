"""The likelihood that solves every task: cos(g∘f(x), g∘f(y)) / τ over a set of candidates (equations 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Likelihood(nn.Module):
    """Joint likelihoods up to their normalisation, with one learned temperature for all tasks.

    Args:
        temperature: τ at the start. It is kept at or above 0.01, as in CLIP.
    """

    MIN_TEMPERATURE = 0.01

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """τ"""
        with torch.no_grad():  # the parameter itself: a clamped τ would have no gradient to come back by
            self.log_scale.clamp_(max=-math.log(self.MIN_TEMPERATURE))
        return torch.exp(-self.log_scale)

    def forward(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """log P(x, y) up to a constant, of inputs [...,d] and candidates [C,d]: [...,C], in float32."""
        return self.of_directions(inputs, directions(candidates))

    def of_directions(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """As `forward`, with candidates [C,d] that are directions: for a caller that asks again and again, as making
        them so costs as much as the product."""
        with torch.autocast(inputs.device.type, enabled=False):  # it would take the product in half precision
            return F.normalize(inputs.float(), dim=-1) @ candidates.T / self.temperature

    @torch.no_grad()
    def against(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`of_directions` with these candidates, for generation's many small calls: no gradients, and τ is what
        it is now."""
        scale = 1 / self.temperature

        @torch.no_grad()
        def likelihoods(inputs: Tensor) -> Tensor:
            with torch.autocast(inputs.device.type, enabled=False):
                return (F.normalize(inputs.float(), dim=-1) * scale) @ candidates.T

        return likelihoods


def directions(representations: Tensor) -> Tensor:
    """Representations [...,d] at length 1, in float32, as :meth:`Likelihood.of_directions` takes them."""
    return F.normalize(representations.float(), dim=-1)


class CandidateCache:
    """Encoded candidate sets, kept until a weight changes.

    In training, sets are encoded anew each time, with gradients. In evaluation a set is encoded once; a change of any
    parameter (an optimizer's step, loaded weights, another device) or of the model's mode empties the cache.

    Args:
        modules: all that encodings depend on.
        capacity: sets kept, so that users' own label sets do not fill the memory; the oldest goes first.
    """

    def __init__(self, modules: Sequence[nn.Module], capacity: int = 64):
        self._modules, self._capacity = tuple(modules), capacity
        self._state: tuple | None = None
        self._sets: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """Representations [C,d] of the candidates that `key` stands for, which `encode` makes."""
        if torch.is_grad_enabled():
            return encode()
        parameters = (p for module in self._modules for p in module.parameters())
        state = tuple(m.training for m in self._modules), *((p.data_ptr(), p._version) for p in parameters)
        if state != self._state:
            self._state = state
            self._sets.clear()
        if key not in self._sets:
            while len(self._sets) >= self._capacity:
                del self._sets[next(iter(self._sets))]
            self._sets[key] = encode()
        return self._sets[key]
