"""Communication between the processes of a distributed run. Without a process group, the run has one process."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_local_process_group = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if _is_distributed() else 0


@functools.lru_cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the group of the processes on this machine.

    ``launch`` calls it. Without ``launch``, call it in every process.

    Args:
        num_workers_per_machine: the number of processes, the same on each machine.

    Raises:
        AssertionError: the group exists, or the processes cannot be divided evenly among machines.
    """
    global _local_process_group
    assert _local_process_group is None, "The local process group exists already"
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, f"{world_size} processes, {num_workers_per_machine} a machine"
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # a collective call: every process creates every group
        if get_rank() in ranks:
            _local_process_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine.

    Raises:
        AssertionError: it has not been created.
    """
    assert _local_process_group is not None, (
        "There is no local process group. Start processes with detectron2's launch(), or call "
        "comm.create_local_process_group(num_workers_per_machine) after init_process_group()."
    )
    return _local_process_group


def get_local_rank() -> int:
    """The rank of this process on its machine, from 0."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """The number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has called this."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # Without the argument, NCCL guesses the device and warns.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _get_global_gloo_group() -> dist.ProcessGroup:
    """A group of all processes that communicates through the CPU, so that objects take no GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The ``data`` of all processes (any object that can be pickled), by rank, in every process.

    Args:
        group: by default all processes, through the CPU.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The ``data`` of all processes (any object that can be pickled), by rank, in process ``dst``. Others get an empty
    list.

    Args:
        group: by default all processes, through the CPU.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    gathered = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A number from process 0's NumPy generator, the same in every process. All processes must call it."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Sum or average the values of each key over all processes. Process 0 gets the result.

    Args:
        input_dict: scalar tensors under the same keys in every process, on the device of the backend.

    Returns:
        The reduced values on rank 0. The values on other ranks are undefined.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # the same order in all processes
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= world_size
        return dict(zip(names, values, strict=True))
