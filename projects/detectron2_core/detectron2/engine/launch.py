from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


def launch(
    main_func,
    num_gpus_per_machine,
    num_machines=1,
    machine_rank=0,
    dist_url=None,
    args=(),
    timeout=DEFAULT_TIMEOUT,
):
    """Call ``main_func(*args)`` in every process of a distributed job. Call this once on every machine.

    A single process calls it directly. For more, processes are started and joined to a process group (nccl with one GPU
    each if there are GPUs, otherwise gloo). The call returns when all of them have ended.

    Args:
        main_func: a function that can be pickled.
        num_gpus_per_machine: the number of processes on each machine.
        num_machines: the number of machines.
        machine_rank: the index of this machine.
        dist_url: where the processes meet, for example "tcp://127.0.0.1:8686". On a single machine "auto" chooses a
            free port.
        args: the arguments of ``main_func``.
        timeout: a timedelta, the time limit of a collective call.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logger.warning("file:// is not reliable between machines, prefer tcp://")
    mp.start_processes(
        _worker,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        nprocs=num_gpus_per_machine,
        daemon=False,
    )


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _worker(local_rank, main_func, world_size, processes_per_machine, machine_rank, dist_url, args, timeout) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert processes_per_machine <= torch.cuda.device_count(), "more processes than GPUs"
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * processes_per_machine + local_rank,
            timeout=timeout,
        )
    except Exception:
        logger.error("Process group URL: %s", dist_url)
        raise
    comm.create_local_process_group(processes_per_machine)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # No process may make its first collective call while another one is still joining the group.
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()
    # The interpreter is not taken down: threads of PyTorch that still ask for it then abort the process now and then.
    # What its end would do is done here: wait for threads, such as one that writes a checkpoint, call exit functions.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
