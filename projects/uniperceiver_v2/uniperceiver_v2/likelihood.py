"""The likelihood that solves every task: cos(g∘f(x), g∘f(y)) / τ over a set of candidates (equations 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

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
        return torch.exp(-self.log_scale).clamp(min=self.MIN_TEMPERATURE)

    def forward(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """log P(x, y) up to a constant, of inputs [...,d] and candidates [C,d]: [...,C], in float32."""
        inputs, candidates = F.normalize(inputs.float(), dim=-1), F.normalize(candidates.float(), dim=-1)
        return inputs @ candidates.T / self.temperature


class CandidateCache:
    """Encoded candidate sets, kept until a weight changes.

    In training, sets are encoded anew each time, with gradients. In evaluation a set is encoded once; a change of any
    parameter (an optimizer's step, loaded weights, another device) empties the cache.

    Args:
        encode: names to representations [C,d].
        parameters: gives all that `encode` depends on.
    """

    def __init__(self, encode: Callable[[tuple[str, ...]], Tensor], parameters: Callable[[], Iterable[Tensor]]):
        self._encode, self._parameters = encode, parameters
        self._state: tuple | None = None
        self._sets: dict[tuple[str, ...], Tensor] = {}

    def get(self, names: tuple[str, ...]) -> Tensor:
        """Representations [C,d] of the candidates."""
        if torch.is_grad_enabled():
            return self._encode(names)
        state = tuple((p.data_ptr(), p._version) for p in self._parameters())
        if state != self._state:
            self._state = state
            self._sets.clear()
        if names not in self._sets:
            self._sets[names] = self._encode(names)
        return self._sets[names]
