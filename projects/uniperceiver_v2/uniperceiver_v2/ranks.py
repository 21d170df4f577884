"""What the ranks of a run tell each other inside a loss, so that together they learn as one with the whole batch would.

The trainer averages gradients over ranks. A loss must therefore be such that its mean over ranks is that of the whole
batch: a sum is divided by the mean over ranks of what it is averaged over, whatever this rank's share of the batch
holds. One rank alone sends nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_ranks(*values: Tensor) -> Tensor:
    """Sums over all ranks of K scalars, in float32 [K], without gradients: one collective call, which every rank has to
    make whatever it holds, and no wait for the device."""
    sums = torch.stack([value.detach().float() for value in values])
    if comm.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums


def mean_divisor(count: Tensor) -> Tensor:
    """What a rank divides its sum by to make a mean over `count` things of all ranks, no less than one."""
    return count.clamp(min=1) / comm.get_world_size()


class _GatherFromRanks(torch.autograd.Function):
    """Concatenates [n,...] of every rank, all of the same n; gradients go back to the rank that a row came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(comm.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # which others may still read
        dist.all_reduce(grad)  # every rank's loss depends on every row
        return grad[comm.get_rank() * ctx.rows :][: ctx.rows]


def gather_from_ranks(rows: Tensor) -> Tensor:
    """[n,...] of this rank to [world size · n,...], in the order of ranks, with gradients to all of them.

    A backward pass gives each rank the gradient of the sum of all ranks' losses; averaged over ranks, it is that of the
    mean loss.
    """
    return rows if comm.get_world_size() == 1 else _GatherFromRanks.apply(rows)
