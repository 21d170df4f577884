"""Activation checkpointing: what a block computed is not kept for the backward pass, which computes it once more."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Makes each block, in place, keep no more than its inputs in training, wherever it is called from.

    Losses and gradients stay what they were, bit by bit, and so do the names of the parameters. Nothing changes in
    evaluation or without gradients.

    Raises:
        ValueError: a block keeps running statistics, which its second run would update once more.
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
    """Stands before a block's own class. Around the call, not the forward pass: a compiled block stays one."""

    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().__call__(*args, **kwargs)
        return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)


@cache
def _checkpointed(block: type[nn.Module]) -> type[nn.Module]:
    return type(block.__name__, (_Checkpointed, block), {"__module__": block.__module__, "__doc__": block.__doc__})
