"""Activation checkpointing: the backward pass computes a block's activations again, so that none are stored."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Lets each block, in place, store only its inputs for the backward pass.

    Losses and gradients stay the same, bit by bit, and parameters keep their names. Nothing changes in evaluation mode
    or without gradients.

    Raises:
        ValueError: a block keeps running statistics. The second forward pass would update them a second time.
    """
    blocks = list(blocks)
    for block in blocks:
        for name, module in block.named_modules():
            if getattr(module, "track_running_stats", False):
                where = f"{type(block).__name__}.{name}".rstrip(".")
                raise ValueError(f"{where} keeps running statistics, which would be updated twice in each step")
    for block in blocks:
        if not isinstance(block, _Checkpointed):
            block.__class__ = _checkpointed(type(block))


class _Checkpointed:
    """Base class that is put before a block's own class. It wraps the call, not `forward`, so that a compiled block
    stays compiled."""

    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().__call__(*args, **kwargs)
        return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)


@cache
def _checkpointed(block: type[nn.Module]) -> type[nn.Module]:
    return type(block.__name__, (_Checkpointed, block), {"__module__": block.__module__, "__doc__": block.__doc__})
