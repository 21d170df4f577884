"""Keys and values that have been computed once: of what stands before causal tokens, and in generation of them too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeyValues:
    """Projected keys and values of a layer's tokens, [B,L,d] each."""

    keys: Tensor
    values: Tensor

    def append(self, new: KeyValues) -> KeyValues:
        """These followed by `new`, differentiable."""
        return KeyValues(torch.cat((self.keys, new.keys), dim=1), torch.cat((self.values, new.values), dim=1))


class KeyValueBuffer:
    """The same, growing in place: a step of generation writes its own tokens and copies no others.

    Args:
        start: what the buffer begins with.
    """

    SPARE = 32  # tokens for which room is made at a time

    def __init__(self, start: KeyValues):
        self.length = 0
        batch, length, dim = start.keys.shape
        self._buffers = [x.new_empty(batch, length + self.SPARE, dim) for x in (start.keys, start.values)]
        self.append(start)

    @torch.compiler.disable  # a graph would hold for one length alone
    def append(self, new: KeyValues) -> KeyValues:
        """Adds the keys and values and returns views of all so far."""
        end = self.length + new.keys.shape[1]
        if end > self._buffers[0].shape[1]:
            self._gather(slice(None), end + self.SPARE)
        for buffer, addition in zip(self._buffers, (new.keys, new.values)):
            buffer[:, self.length : end] = addition
        self.length = end
        return KeyValues(*(buffer[:, :end] for buffer in self._buffers))

    def select(self, rows: Tensor) -> None:
        """Rows of the batch, any number of times each."""
        self._gather(rows, self._buffers[0].shape[1])

    def select_from(self, start: int, rows: Tensor) -> None:
        """As `select`, where all chosen rows are alike in the first `start` tokens and their number stays."""
        for buffer in self._buffers:
            buffer[:, start : self.length] = buffer[:, start : self.length].index_select(0, rows)

    def _gather(self, rows: Tensor | slice, capacity: int) -> None:
        old = self._buffers
        self._buffers = []
        for buffer in old:
            kept = buffer[rows, : self.length]
            self._buffers.append(buffer.new_empty(len(kept), capacity, buffer.shape[2]))
            self._buffers[-1][:, : self.length] = kept


class DecoderCache:
    """What generation keeps between its steps.

    Args:
        layers: of each decoder layer, the prefix' keys and values.
        valid: [B,P] bool, False at the prefix' padding; None if all are valid.
    """

    def __init__(self, layers: list[KeyValues], valid: Tensor | None):
        self.layers = [KeyValueBuffer(layer) for layer in layers]
        self._valid = valid
        batch, self._prefix = layers[0].keys.shape[:2]
        self._rows = torch.arange(batch, device=layers[0].keys.device)  # whose prefix stands in which row

    @property
    def length(self) -> int:
        """Tokens so far, <SPE> and padding included."""
        return self.layers[0].length

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
            for layer in self.layers:
                layer.select_from(self._prefix, indices)
            return self
        for layer in self.layers:
            layer.select(indices)
        self._rows = rows
        self._valid = None if self._valid is None else self._valid[indices]
        return self
