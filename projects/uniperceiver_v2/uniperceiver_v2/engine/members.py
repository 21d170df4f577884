"""The processes of a run as they introduce themselves to each other: host, device, place on the host."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from ..errors import UserError


@dataclasses.dataclass(frozen=True)
class Member:
    """A process of a run.

    Attributes:
        host: the name of its machine.
        pid, parent: the numbers of the process and of its parent there.
        device: MODEL.DEVICE. It is "cpu" where PyTorch sees no GPU.
        gpus: the number of GPUs that PyTorch sees.
        local_rank, local_size: its place among the processes of its machine, and their number. -1 if its starter has
            not said so.
    """

    host: str
    pid: int
    parent: int
    device: str
    gpus: int
    local_rank: int
    local_size: int


def introduce(store: dist.Store, rank: int, size: int, device: str) -> list[Member]:
    """Tell the others about this process, and wait until all have done the same.

    Args:
        store: a store of this start of the run.
        rank, size: the rank of this process, and the number of processes.
        device: MODEL.DEVICE of this process.

    Returns:
        all processes by rank, the same in every process. Places that starters have not told follow from host names.
    """
    mine = Member(
        socket.gethostname(),
        os.getpid(),
        os.getppid(),
        device,
        torch.cuda.device_count(),
        int(os.environ.get("LOCAL_RANK") or -1),
        int(os.environ.get("LOCAL_WORLD_SIZE") or -1),
    )
    store.set(f"beat/{rank}", "")  # for the watch, which reads them all
    store.set(f"member/{rank}", json.dumps(dataclasses.asdict(mine)))
    return _with_places([Member(**json.loads(store.get(f"member/{other}"))) for other in range(size)])


def _with_places(told: Sequence[Member]) -> list[Member]:
    on_host, earlier = Counter(member.host for member in told), Counter[str]()
    members = []
    for member in told:
        rank, size = member.local_rank, member.local_size
        place = {
            "local_rank": earlier[member.host] if rank < 0 else rank,
            "local_size": on_host[member.host] if size < 0 else size,
        }
        members.append(dataclasses.replace(member, **place))
        earlier[member.host] += 1
    return members


def check_members(members: Sequence[Member]) -> None:
    """Refuse processes that cannot train together.

    Raises:
        UserError: a host has no GPU while others have, or too few of them; or the processes are not divided equally
            among hosts. Every process raises the same error, so that none waits for another.
    """
    with_gpu = [member.host for member in members if member.device.startswith("cuda")]
    without = sorted({member.host for member in members if not member.device.startswith("cuda")})
    if with_gpu and without:
        raise UserError(
            f"PyTorch sees no GPU on {', '.join(without)}, while {with_gpu[0]} trains on one: mend or leave out the "
            "host, or set MODEL.DEVICE cpu for all"
        )
    for member in members:
        if member.device.startswith("cuda") and member.local_rank >= member.gpus:
            raise UserError(
                f"more processes were started on {member.host} than PyTorch sees GPUs there ({member.gpus}). "
                "A process needs to see all GPUs of its host, and takes that of its LOCAL_RANK"
            )
    if len({member.local_size for member in members}) > 1:
        counts = Counter(member.host for member in members)
        found = ", ".join(f"{host} has {count}" for host, count in sorted(counts.items()))
        raise UserError(f"every host needs the same number of processes: {found}")
