"""Keys and values that have been computed once: of what stands before causal tokens, and in generation of them too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import CausalLayer, KeyValueBuffer
from .segments import Attributes


@dataclass
class KeyValues:
    """Projected keys and values of a layer's tokens, [B,L,d] each."""

    keys: Tensor
    values: Tensor

    def append(self, new: KeyValues) -> KeyValues:
        """These followed by `new`, differentiable."""
        return KeyValues(torch.cat((self.keys, new.keys), dim=1), torch.cat((self.values, new.values), dim=1))


class DecoderCache:
    """What generation keeps between its steps.

    Args:
        layers: of each decoder layer, the prefix' keys and values.
        heads: of attention.
        valid: [B,P] bool, False at the prefix' padding; None if all are valid.
    """

    def __init__(self, layers: list[KeyValues], heads: int, valid: Tensor | None):
        self.steps: dict[Attributes, list[CausalLayer]] = {}  # the decoder's layers, as tokens with these use them
        self.past = KeyValueBuffer(len(layers))
        for index, layer in enumerate(layers):
            both = torch.stack((layer.keys, layer.values))
            self.past.add(index, both.unflatten(3, (heads, -1)).transpose(2, 3))
        self._valid = valid
        batch, self._prefix = layers[0].keys.shape[:2]
        self._rows = torch.arange(batch, device=layers[0].keys.device)  # whose prefix stands in which row

    @property
    def length(self) -> int:
        """Tokens so far, <SPE> and padding included."""
        return self.past.length

    def valid(self, new: int) -> Tensor | None:
        """[B,L+new] bool of all tokens so far and `new` more, which are valid; None if all are."""
        if self._valid is None:
            return None
        added = self.length + new - self._prefix
        return torch.cat((self._valid, self._valid.new_ones(len(self._valid), added)), dim=1)

    def select(self, indices: Tensor) -> DecoderCache:
        """Makes row i what row indices[i] was, in place: reorders beams, drops rows or repeats them.

        The beams of one input share its prefix. While each row stays with its input, no prefix is copied.

        Args:
            indices: [B'] long.
        Returns:
            itself
        """
        rows = self._rows[indices]
        if torch.equal(rows, self._rows):
            self.past.select_from(self._prefix, indices)
            return self
        self.past.select(indices)
        self._rows = rows
        self._valid = None if self._valid is None else self._valid[indices]
        return self
