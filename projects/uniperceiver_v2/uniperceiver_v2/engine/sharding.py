"""Parameters, gradients and the optimizer's state divided among ranks by PyTorch's ``fully_shard``.

The model is gathered once for each backward pass, at the beginning of its forward pass, and its gradient is averaged
and divided at the end of the backward pass. In between nothing is sent for it. So ranks may use different parts of the
model, and use them a different number of times, without waiting for each other in vain.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..errors import UserError
from ..shards import divided_like, whole


def shard_model(model: nn.Module, how: str, *, in_bfloat16: bool = False, timeout: timedelta | None = None) -> bool:
    """Divide the parameters of a model, which all ranks have, among them. A single rank keeps the model as it is.

    Parameters without a dimension, such as τ, stay whole: there is nothing to divide.

    Args:
        how: "none", "full" (over all ranks), or "hybrid" (over the ranks of each machine, the same on all machines).
        in_bfloat16: whether gradients travel and are added as bfloat16.
        timeout: how long a rank waits for the others of its machine, and of the same part. None for PyTorch's limit.
            All ranks together have the limit of their own group.

    Returns:
        whether the model is divided now.

    Raises:
        UserError: PyTorch is too old.
    """
    if how == "none" or comm.get_world_size() == 1:
        return False
    fully_shard, policy = _fully_shard()
    device = next(model.parameters()).device.type
    on_machine = comm.get_local_size() if how == "hybrid" else comm.get_world_size()
    fully_shard(
        model,
        mesh=_mesh(device, on_machine, timeout),
        reshard_after_forward=False,
        mp_policy=policy(reduce_dtype=torch.bfloat16 if in_bfloat16 else None),
        ignored_params={p for p in model.parameters() if p.ndim == 0},
    )
    model.register_forward_pre_hook(lambda *_: _count_as_changed(model) if model.training else None)
    return True


def _mesh(device: str, on_machine: int, timeout: timedelta | None) -> DeviceMesh:
    """All ranks in a row, or with several machines a row for each. ``init_device_mesh`` takes no time limit."""
    if on_machine == comm.get_world_size():
        return DeviceMesh.from_group(dist.group.WORLD, device)
    ranks = torch.arange(comm.get_world_size()).view(-1, on_machine)
    replicate, shard = (dist.new_subgroups_by_enumeration(x.tolist(), timeout)[0] for x in (ranks.T, ranks))
    return DeviceMesh.from_group([replicate, shard], device, ranks, mesh_dim_names=("replicate", "shard"))


def _count_as_changed(model: nn.Module) -> None:
    """Raise the version of each gathered parameter. PyTorch writes the gathered values without raising it, often into
    the memory of the time before, and caches of values that depend on weights look at both."""
    for parameter in model.parameters():
        torch.autograd.graph.increment_version(parameter)


def _fully_shard() -> tuple[Any, Any]:
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        complete = False
    else:
        complete = "ignored_params" in inspect.signature(fully_shard).parameters
    if not complete:
        raise UserError(
            f"SOLVER.SHARDING needs a newer PyTorch than {torch.__version__}: one that has fully_shard with "
            "ignored_params. SOLVER.SHARDING 'none' works with any"
        )
    return fully_shard, MixedPrecisionPolicy


@contextlib.contextmanager
def whole_model(model: nn.Module) -> Iterator[None]:
    """A context in which every rank has the whole model, to use it without the others. Every rank has to enter it."""
    if not hasattr(model, "unshard"):
        yield
        return
    model.unshard()
    _count_as_changed(model)
    try:
        yield
    finally:
        model.reshard()


def load_into_parts(model: nn.Module, build: Callable[[], nn.Module], load: Callable[[nn.Module], Any]) -> None:
    """Load weights by a function that knows whole models only: into a second model, of which each rank takes its part.

    Args:
        model: the model, divided or not.
        build: makes the second model.
        load: changes the weights of a model.
    """
    if not hasattr(model, "unshard"):
        load(model)
        return
    own, second = model.state_dict(), build()
    second.load_state_dict({key: whole(value) for key, value in own.items()})
    load(second)
    model.load_state_dict({key: divided_like(value, own[key]) for key, value in second.state_dict().items()})


class _ReachAll(torch.autograd.Function):
    """Returns its first argument. All others get the gradient zero."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(p.new_zeros(()).expand_as(p) for p in ctx.saved_tensors)


def reach_all(total: Tensor, model: nn.Module) -> Tensor:
    """The same loss, whose gradient has a zero for each parameter that the forward pass has not used.

    Ranks divide the sum of what they have. So each has to have a gradient of the same parameters.
    """
    return _ReachAll.apply(total, *(p for p in model.parameters() if p.requires_grad))
