"""Incremental decoding: Transformer layers that compute one word at a time and keep all keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor]  # matrix and bias of a linear map


class KeyValueBuffer:
    """Keys and values of all layers for N sequences, in one buffer with room to grow.

    A step writes its own tokens and copies no others. One operation reorders the sequences in all layers.

    Args:
        layers: number of layers.
    """

    SPARE = 32  # the buffer grows by this many tokens

    def __init__(self, layers: int):
        self.length = 0
        self._layers = layers
        self._buffer: Tensor | None = None  # [layers,2,N,heads,tokens,width]

    def add(self, layer: int, new: Tensor) -> Sequence[Tensor]:
        """Adds T tokens to a layer and returns the layer's keys and values of all L tokens so far.

        A step calls it once for each layer, in order. The call for the last layer increases `length`.

        Args:
            new: [2,N,heads,T,width], keys and values.
        Returns:
            views of the buffer: keys [N,heads,L,width] and values [N,heads,L,width].
        """
        end = self.length + new.shape[3]
        if self._buffer is None:
            self._buffer = new.new_empty(self._layers, *new.shape[:3], end + self.SPARE, new.shape[4])
        elif end > self._buffer.shape[4]:
            self._resize(slice(None), end + self.SPARE)
        own = self._buffer[layer]
        own[:, :, :, self.length : end] = new
        if layer == self._layers - 1:
            self.length = end
        return own[:, :, :, :end].unbind()

    def select(self, rows: Tensor) -> None:
        """Keeps the sequences `rows` [N'], in this order. A sequence may occur several times."""
        if self._buffer is not None:
            self._resize(rows, self._buffer.shape[4])

    def select_from(self, start: int, rows: Tensor) -> None:
        """`select` for N rows that leave the first `start` tokens of each row unchanged. Copies only later tokens."""
        tokens = self._buffer[:, :, :, :, start : self.length]
        tokens.copy_(tokens.index_select(2, rows))

    def _resize(self, rows: Tensor | slice, capacity: int) -> None:
        kept = self._buffer[:, :, rows, :, : self.length]
        self._buffer = kept.new_empty(*kept.shape[:4], capacity, kept.shape[5])
        self._buffer[:, :, :, :, : self.length] = kept


class CausalLayer:
    """A Transformer layer for steps of generation, without gradients and dropout.

    It computes the same function as the layer in training, with as few operations as possible: in a small model the
    number of operations decides the time of a step, not the arithmetic. Queries, keys and values are one product with a
    copy of the three matrices side by side. Under autocast the weights are cast here, once, and not in each step.

    Args:
        heads: number of attention heads.
        projections: the linear maps for queries, keys, values and output of attention.
        ffn: the two linear maps of the feed-forward network.
        activation: between the two.
        norms: for attention and for the feed-forward network.
        norm_first: True if a norm is applied to the part's input (pre-norm), False if to the residual sum (post-norm).
    """

    def __init__(
        self,
        heads: int,
        projections: Sequence[nn.Linear],
        ffn: Sequence[Weights],
        activation: Callable[[Tensor], Tensor],
        norms: Sequence[nn.LayerNorm],
        norm_first: bool,
    ):
        *inputs, output = projections
        self._heads, self._activation, self._norm_first = heads, activation, norm_first
        self._inputs = _ready(torch.cat([x.weight for x in inputs]), torch.cat([x.bias for x in inputs]))
        self._output = _ready(output.weight, output.bias)
        self._first, self._second = (_ready(*weights) for weights in ffn)
        self._norms = [normalisation(norm) for norm in norms]

    def __call__(self, hidden: Tensor, past: KeyValueBuffer, layer: int, mask: Tensor | None) -> Tensor:
        """Passes T further tokens through the layer and adds their keys and values to `past`.

        Args:
            hidden: [N,T,d].
            past: keys and values of the L tokens so far.
            layer: this layer's number in the buffer.
            mask: bool, True where attention is allowed, broadcastable to [N,heads,T,L+T].
        Returns:
            [N,T,d]
        """
        attention_norm, ffn_norm = self._norms
        if self._norm_first:
            hidden = hidden + self._attend(F.layer_norm(hidden, *attention_norm), past, layer, mask)
            return hidden + self._feed_forward(F.layer_norm(hidden, *ffn_norm))
        hidden = F.layer_norm(hidden + self._attend(hidden, past, layer, mask), *attention_norm)
        return F.layer_norm(hidden + self._feed_forward(hidden), *ffn_norm)

    def _attend(self, hidden: Tensor, past: KeyValueBuffer, layer: int, mask: Tensor | None) -> Tensor:
        batch, length, dim = hidden.shape
        projected = F.linear(hidden, *self._inputs).view(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        keys, values = past.add(layer, projected[1:])
        attended = F.scaled_dot_product_attention(projected[0], keys, values, attn_mask=mask)
        return F.linear(attended.transpose(1, 2).reshape(batch, length, dim), *self._output)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return F.linear(self._activation(F.linear(hidden, *self._first)), *self._second)


def normalisation(norm: nn.LayerNorm) -> tuple:
    """The arguments of `F.layer_norm` behind its input."""
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def causal_mask(new: int, before: int, device: torch.device) -> Tensor | None:
    """The mask [T,L+T] bool of T = `new` causal tokens behind L = `before` others; None if it allows everything."""
    if new == 1:
        return None
    return torch.ones(new, before + new, dtype=torch.bool, device=device).tril(before)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision of matrix products under the autocast in force, or None outside autocast."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _ready(weight: Tensor, bias: Tensor) -> Weights:
    dtype = autocast_dtype(weight.device)
    if dtype is not None and weight.dtype == torch.float32:
        return weight.detach().to(dtype), bias.detach().to(dtype)
    return weight.detach(), bias.detach()
