"""Communication between ranks inside a loss, so that several ranks get the gradient of one rank with the whole batch.

The trainer averages gradients over ranks. The mean of the ranks' losses must therefore be the loss of the whole batch.
So a rank divides its sum by the mean count of all ranks, not by its own count. For example, if two ranks have 3 and 5
objects, both divide their sums by 4: the mean of sum₁/4 and sum₂/4 is (sum₁ + sum₂)/8. A single rank sends nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_ranks(*values: Tensor) -> Tensor:
    """Sums of K scalars over all ranks, float32 [K], without gradients and without a wait for the device.

    It is one collective call, so every rank has to make it, even with an empty batch.
    """
    sums = torch.stack([value.detach().float() for value in values])
    if comm.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums


def mean_divisor(count: Tensor) -> Tensor:
    """The divisor of a rank's sum for a mean over `count` things of all ranks. A count below 1 is taken as 1."""
    return count.clamp(min=1) / comm.get_world_size()


class _GatherFromRanks(torch.autograd.Function):
    """Concatenates the rows [n,...] of all ranks, with the same n. The gradient of a row goes back to its rank."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(comm.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # a copy, as other functions may still read grad
        dist.all_reduce(grad)  # every rank's loss depends on every row
        return grad[comm.get_rank() * ctx.rows :][: ctx.rows]


def gather_from_ranks(rows: Tensor) -> Tensor:
    """Concatenates the rows [n,...] of all ranks to [world size · n,...], in the order of ranks, with gradients.

    A row gets the gradient of the sum of all ranks' losses. The trainer's mean over ranks makes it the gradient of the
    mean loss.
    """
    return rows if comm.get_world_size() == 1 else _GatherFromRanks.apply(rows)
