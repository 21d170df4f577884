"""Keys and values that are computed once: of the tokens before a causal segment and, in generation, of each word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import CausalLayer, KeyValueBuffer
from .segments import Attributes


@dataclass
class KeyValues:
    """Projected keys and values of L tokens in one layer, [B,L,d] each."""

    keys: Tensor
    values: Tensor

    def append(self, new: KeyValues) -> KeyValues:
        """Concatenates these and `new`, with gradients."""
        return KeyValues(torch.cat((self.keys, new.keys), dim=1), torch.cat((self.values, new.values), dim=1))


class DecoderCache:
    """The state of generation between two words: keys and values, and the layers prepared for the next word.

    Args:
        prefix: keys and values of <SPE> and the segments before the causal tokens, for each decoder layer.
        heads: of attention.
        valid: [B,P] bool, False at padding in the prefix; None if it has no padding.
    """

    def __init__(self, prefix: list[KeyValues], heads: int, valid: Tensor | None):
        self.layers: dict[Attributes, list[CausalLayer]] = {}  # the decoder's layers for tokens of these attributes
        self.past = KeyValueBuffer(len(prefix))
        for index, layer in enumerate(prefix):
            both = torch.stack((layer.keys, layer.values))
            self.past.add(index, both.unflatten(3, (heads, -1)).transpose(2, 3))
        self._valid = valid
        batch, self._prefix = prefix[0].keys.shape[:2]
        self._rows = torch.arange(batch, device=prefix[0].keys.device)  # row i has the prefix of input rows[i]

    @property
    def length(self) -> int:
        """The number of tokens so far, <SPE> and padding included."""
        return self.past.length

    def valid(self, new: int) -> Tensor | None:
        """`valid` [B,L+new] of all tokens so far and of `new` further, valid ones; None if there is no padding."""
        if self._valid is None:
            return None
        added = self.length + new - self._prefix
        return torch.cat((self._valid, self._valid.new_ones(len(self._valid), added)), dim=1)

    def select(self, indices: Tensor) -> DecoderCache:
        """Reorders, repeats or drops rows, in place: row i becomes the former row `indices[i]`.

        The beams of one input have the same prefix. As long as beams only change places with beams of their own input,
        no prefix is copied.

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
