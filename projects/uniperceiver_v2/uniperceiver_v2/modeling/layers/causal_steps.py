"""Transformer layers for generation: a word at a time, after keys and values that were computed before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor]  # of a linear map: matrix and bias


def state_of_weights(modules: Iterable[nn.Module]) -> tuple:
    """What differs after any change of the modules' parameters (an optimizer's step, loaded weights, another device),
    for those who keep what they made of them."""
    return tuple((p.data_ptr(), p._version) for module in modules for p in module.parameters())


class KeyValueBuffer:
    """Keys and values of all layers for N sequences, growing in place: a step writes its own tokens and copies no
    others, and sequences are reordered in all layers at once.

    Args:
        layers: their number.
    """

    SPARE = 32  # tokens for which room is made at a time

    def __init__(self, layers: int):
        self.length = 0
        self._layers = layers
        self._buffer: Tensor | None = None  # [layers,2,N,heads,tokens,width]

    def add(self, layer: int, new: Tensor) -> Sequence[Tensor]:
        """Adds keys and values [2,N,heads,T,width] of T tokens and returns views of all so far, those [N,heads,L,width]
        of keys and of values. The layers come in order; behind the last one the tokens count as seen."""
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
        """Sequences `rows` [N'], any number of times each."""
        if self._buffer is not None:
            self._resize(rows, self._buffer.shape[4])

    def select_from(self, start: int, rows: Tensor) -> None:
        """As `select`, where all chosen rows are alike in the first `start` tokens and their number stays."""
        tokens = self._buffer[:, :, :, :, start : self.length]
        tokens.copy_(tokens.index_select(2, rows))

    def _resize(self, rows: Tensor | slice, capacity: int) -> None:
        kept = self._buffer[:, :, rows, :, : self.length]
        self._buffer = kept.new_empty(*kept.shape[:4], capacity, kept.shape[5])
        self._buffer[:, :, :, :, : self.length] = kept


class CausalLayer:
    """A Transformer layer as a step of generation uses it: the same function without gradients and dropout, by as few
    operations as it takes, since these, and not the arithmetic, are a small model's time.

    Queries, keys and values are one product, of matrices that are copied next to each other for it. Weights have the
    precision of the autocast in which they were prepared, so that they are not cast in each step.

    Args:
        heads: of attention.
        projections: of queries, keys, values and of what was attended to.
        ffn: the feed-forward network's two linear maps.
        activation: between these.
        norms: of attention and of the feed-forward network.
        norm_first: whether these stand before the two, or behind the sums with what went in.
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
        """[N,T,d] to [N,T,d], after the past, to which the tokens are added.

        Args:
            layer: which of the buffer's this is.
            mask: bool, True where attention is allowed, broadcastable to [N,heads,T,L+T].
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
    """What `F.layer_norm` takes beside its input."""
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def causal_mask(new: int, before: int, device: torch.device) -> Tensor | None:
    """[T,L+T] bool for T causal tokens after L others; None where they see everything."""
    if new == 1:
        return None
    return torch.ones(new, before + new, dtype=torch.bool, device=device).tril(before)


def _ready(weight: Tensor, bias: Tensor) -> Weights:
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
        return weight.detach().to(dtype), bias.detach().to(dtype)
    return weight.detach(), bias.detach()
