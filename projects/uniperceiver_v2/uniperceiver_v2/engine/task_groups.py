"""Task groups: what groups of ranks tell each other after each has computed the gradient of a draw of its own.

All ranks get the gradient of every group (:func:`share_gradients`) and compute the same step. The alternative, a sum
over groups of g/s and another of g²/s, sends 4(G-1)/G times the gradient's bytes per rank, whatever the tasks reach. A
broadcast by each group sends what the group's task reaches, at most G - 1 times the gradient's bytes per rank. So up to
four groups, broadcasts send no more, and with two groups they send half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from .. import ranks
from .gradients import buckets

Gradients = Mapping[nn.Parameter, Tensor]


@dataclass
class Draw:
    """A draw of a task, and what its group found. With mixed sampling, the only draw of an iteration has all tasks.

    Attributes:
        group: the index of the group.
        shares: the weight of the loss of each task, 1 for a single task.
        losses: by their names in the storage, means over the ranks of the group.
        norm: of the whole gradient before normalisation; NaN before it is known and if a loss is not finite.
        images: in the batch, over the ranks of the group.
        data_time, seconds: for which the group waited for its batch, and for which it worked on this draw.
        stop: whether a rank of the group was asked to stop.
        logged: name and value of each scalar that the forward pass has put, if it is not in the storage already.
        reached: for each parameter, 1 if it has a gradient and 0 if not. Empty if no other rank needs it.
    """

    group: int
    shares: dict[str, float]
    losses: dict[str, float]
    norm: float
    images: int
    data_time: float
    seconds: float
    stop: bool
    logged: list[tuple[str, float]]
    reached: bytes

    @property
    def total_loss(self) -> float:
        """The weighted sum of the tasks' losses."""
        return sum(share * self.losses[f"{task}/total_loss"] for task, share in self.shares.items())

    @property
    def has_finite_losses(self) -> bool:
        """Whether all losses are finite."""
        return all(math.isfinite(value) for value in self.losses.values())


def tell_all(own: Sequence[Draw]) -> list[Draw]:
    """The draws of all groups in the order of groups. Every rank has to call it with those of its own groups."""
    by_rank = comm.all_gather(list(own))
    return [draw for of_rank in by_rank[:: ranks.group_size()] for draw in of_rank]


@torch.no_grad()
def share_gradients(
    parameters: Sequence[nn.Parameter], draws: Sequence[Draw], own: Mapping[int, Gradients]
) -> list[Gradients]:
    """The gradients of all draws, the same bits on all ranks.

    Every bucket of a gradient is broadcast by one rank of its group. The ranks of a group take turns, so that a
    group with many network adapters uses all of them.

    Args:
        parameters: those of the model, in the same order on all ranks.
        draws: as :func:`tell_all` returns them, without those that nobody needs.
        own: the gradients of this rank's groups by group.
    """
    if comm.get_world_size() == 1:
        return [own[draw.group] for draw in draws]
    found: list[dict[nn.Parameter, Tensor]] = []
    sent = []
    for draw in draws:
        found.append({})
        reached = [p for p, is_reached in zip(parameters, draw.reached, strict=True) if is_reached]
        for position, bucket in enumerate(buckets(reached)):
            source = ranks.rank_of(draw.group, position)
            if source == comm.get_rank():
                flat = torch.cat([own[draw.group][p].flatten() for p in bucket])
            else:
                flat = bucket[0].new_empty(sum(p.numel() for p in bucket))
            sent.append((found[-1], bucket, flat, dist.broadcast(flat, src=source, async_op=True)))
    for gradients, bucket, flat, work in sent:
        work.wait()
        parts = flat.split([p.numel() for p in bucket])
        gradients.update((p, part.view_as(p)) for p, part in zip(bucket, parts))
    return found


@torch.no_grad()
def put_mean_gradient(parameters: Sequence[nn.Parameter], of_draws: Sequence[Gradients]) -> None:
    """Let the parameters have the mean of the draws' gradients. A parameter that no draw reaches gets none."""
    for p in parameters:
        there = [gradients[p] for gradients in of_draws if p in gradients]
        p.grad = torch.stack(there).sum(0) / len(of_draws) if there else None


def adapt_scale(scaler: torch.amp.GradScaler, overflow: bool) -> None:
    """What ``scaler.update()`` does, for an overflow that another group may have found."""
    state = scaler.state_dict()
    good_steps = 0 if overflow else state["_growth_tracker"] + 1
    if overflow:
        state["scale"] *= state["backoff_factor"]
    elif good_steps == state["growth_interval"]:
        state["scale"] *= state["growth_factor"]
        good_steps = 0
    scaler.load_state_dict({**state, "_growth_tracker": good_steps})
