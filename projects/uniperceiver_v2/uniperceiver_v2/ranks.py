"""Groups of ranks, and the communication inside a loss by which a group gets the gradient of one rank with its batch.

With task groups, an iteration has several draws of a task, one for each group, and the ranks are split equally among
the groups. For example, with 8 ranks and 2 groups, the ranks 0 to 3 share one batch and the ranks 4 to 7 another. With
fewer ranks than groups, a rank computes the draws of several groups one after the other. With one group, which is the
default, all ranks share every batch.

Within a group, the trainer averages gradients over ranks. The mean of the ranks' losses must therefore be the loss of
the whole batch. So a rank divides its sum by the mean count of all ranks of its group, not by its own count. For
example, if two ranks have 3 and 5 objects, both divide their sums by 4: the mean of sum₁/4 and sum₂/4 is
(sum₁ + sum₂)/8. A group of a single rank sends nothing.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

_num_groups = 1
_timeout: timedelta | None = None


def set_task_groups(count: int, timeout: timedelta | None = None) -> None:
    """Split the ranks of this run into ``count`` groups, until the next call. All ranks have to call it.

    Args:
        count: the number of groups.
        timeout: how long a call waits for the other ranks of a group. None for PyTorch's limit, which differs from that
            of all ranks: 10 minutes on GPUs.

    Raises:
        ValueError: neither do the groups share the ranks equally, nor the ranks the groups.
    """
    global _num_groups, _timeout
    world_size = comm.get_world_size()
    if count < 1 or (world_size % count and count % world_size):
        raise ValueError(f"{world_size} ranks and {count} task groups cannot be divided equally")
    _num_groups, _timeout = count, timeout
    if group_size() > 1:
        process_group()  # a collective call: now, while all ranks are here


def num_groups() -> int:
    """The number of task groups, which is the number of draws of an iteration."""
    return _num_groups


def group_size() -> int:
    """The number of ranks that share the batch of a group."""
    return max(comm.get_world_size() // _num_groups, 1)


def rank_in_group() -> int:
    """The position of this rank in its group, from 0."""
    return comm.get_rank() % group_size()


def own_groups() -> range:
    """The groups of which this rank computes a share: one, or several if there are fewer ranks than groups."""
    per_rank = max(_num_groups // comm.get_world_size(), 1)
    first = comm.get_rank() // group_size() * per_rank
    return range(first, first + per_rank)


def rank_of(group: int, position: int = 0) -> int:
    """The rank at a position of a group. Positions count on beyond the group's size, from its beginning."""
    per_rank = max(_num_groups // comm.get_world_size(), 1)
    return group // per_rank * group_size() + position % group_size()


def process_group() -> dist.ProcessGroup | None:
    """The process group of this rank's task group, or None for all ranks. Not for a group of a single rank."""
    return None if _num_groups == 1 else _process_group_of(_num_groups, _timeout)


def gradient_group() -> dist.ProcessGroup:
    """As :func:`process_group`, for what is sent while a backward pass goes on.

    Ranks have to make the calls of one group in the same order. The backward pass makes calls of its own on
    :func:`process_group` (:func:`gather_from_ranks`). Whether a bucket of gradients is sent before or after them may
    differ from rank to rank, so gradients have a group of their own.
    """
    return _process_group_of(_num_groups, _timeout, "gradients")


@functools.lru_cache
def _process_group_of(count: int, timeout: timedelta | None, purpose: str = "") -> dist.ProcessGroup:
    """One of ``count`` groups, that of this rank. Each purpose has groups of its own, which are made once."""
    size = comm.get_world_size() // count
    for first in range(0, comm.get_world_size(), size):
        members = range(first, first + size)
        group = dist.new_group(list(members), timeout)  # every rank creates every group
        if comm.get_rank() in members:
            own = group
    return own


def sum_over_ranks(first: Tensor, *others: Tensor | float) -> Tensor:
    """Sums of K scalars over the ranks of the group, float32 [K], without gradients and without a wait for the device.

    It is one collective call, so every rank of the group has to make it, even with an empty batch.
    """
    found = [
        x.detach().float() if isinstance(x, Tensor) else first.new_full((), x, dtype=torch.float32)
        for x in (first, *others)
    ]
    sums = torch.stack(found)
    if group_size() > 1:
        dist.all_reduce(sums, group=process_group())
    return sums


def mean_divisor(count: Tensor) -> Tensor:
    """The divisor of a rank's sum for a mean over `count` things of the group. A count below 1 is taken as 1."""
    return count.clamp(min=1) / group_size()


class _GatherFromRanks(torch.autograd.Function):
    """Concatenates the rows [n,...] of a group's ranks, with the same n. The gradient of a row goes back to its
    rank."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(group_size())]
        dist.all_gather(gathered, rows.contiguous(), group=process_group())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # a copy, as other functions may still read grad
        dist.all_reduce(grad, group=process_group())  # the loss of every rank of the group depends on every row
        return grad[rank_in_group() * ctx.rows :][: ctx.rows]


def mean_over_ranks(rows: Tensor) -> Tensor:
    """The mean [...] of the rows [n,...] of all ranks of the group, of which each may have another n, with gradients as
    those of :func:`gather_from_ranks`. Zeros if no rank has a row."""
    sums = gather_from_ranks(rows.float().sum(0, keepdim=True)).sum(0)
    count = sum_over_ranks(sums.new_full((), len(rows)))
    return (sums / count.clamp(min=1)).to(rows.dtype)


def gather_from_ranks(rows: Tensor) -> Tensor:
    """Concatenates the rows [n,...] of the group's ranks to [group size · n,...], in the order of ranks, with
    gradients.

    A row gets the gradient of the sum of the losses of the group's ranks. The trainer's mean over them makes it the
    gradient of the mean loss.
    """
    return rows if group_size() == 1 else _GatherFromRanks.apply(rows)
