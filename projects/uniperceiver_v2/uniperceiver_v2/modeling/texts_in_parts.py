"""Many candidates in training, such as a thousand class names: encoded part by part, and shared by the processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..ranks import gather_from_ranks, group_size, rank_in_group

# Token ids [C,T] and valid [C,T] or None of C texts -> tensors [C,n], each with a width n of its own.
Encode = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]


@dataclass(frozen=True)
class TextsInParts:
    """How texts are encoded while gradients are enabled. Otherwise they are encoded all at once, in every process.

    Attributes:
        at_once: so many texts are encoded at a time, and once more in the backward pass, so that only results are kept
            in between; 0 for all at once, with everything kept.
        split: whether each process of a task group encodes its share of texts that all of them have, and gathers the
            others. For R processes it does one R-th of the work. Of the random numbers of dropout, a text then has one
            draw in an iteration instead of R.
    """

    at_once: int = 0
    split: bool = False

    def encode(self, encode: Encode, token_ids: Tensor, valid: Tensor | None, shared: bool) -> tuple[Tensor, ...]:
        """What ``encode`` makes of texts.

        Args:
            encode: computes each text by itself, so that texts may be encoded apart.
            token_ids, valid: int64 and bool [C,T]; None if all tokens are valid.
            shared: whether all processes of the group make this call with the same texts.

        Returns:
            the tensors of ``encode``, for all C texts.
        """
        if not (shared and self.split and group_size() > 1 and torch.is_grad_enabled()):
            return self._encode(encode, token_ids, valid)
        count = len(token_ids)
        share = -(-count // group_size())
        # All shares have the same size, so the last one may have the last text several times.
        own = torch.arange(share, device=token_ids.device).add_(rank_in_group() * share).clamp_(max=count - 1)
        found = self._encode(encode, token_ids[own], None if valid is None else valid[own])
        gathered = gather_from_ranks(torch.cat(found, dim=1))[:count]
        return gathered.split([part.shape[1] for part in found], dim=1)

    def _encode(self, encode: Encode, token_ids: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        size = self.at_once
        if not (0 < size < len(token_ids) and torch.is_grad_enabled()):
            return encode(token_ids, valid)
        found = [
            checkpoint(
                encode,
                token_ids[first : first + size],
                None if valid is None else valid[first : first + size],
                use_reentrant=False,
            )
            for first in range(0, len(token_ids), size)
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
