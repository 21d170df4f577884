"""The processes of a run: one, those that Detectron2's ``launch`` starts, or those that torchrun has started."""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from ..errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def world_size(args: Namespace) -> int:
    """How many processes the run has.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: more than this machine can hold, or asked for twice.
    """
    if dist.is_torchelastic_launched():
        if args.num_gpus != 1 or args.num_machines != 1:
            raise UserError("torchrun starts the processes: --num-gpus and --num-machines are for runs without it")
        return int(os.environ["WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if args.num_gpus > max(gpus, 1):
        hint = "" if gpus else f"; for processes on the CPU: torchrun --nproc_per_node {args.num_gpus} ..."
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {gpus}{hint}")
    return max(args.num_gpus * args.num_machines, 1)


def run_in_processes(main: Callable[[Namespace], None], args: Namespace) -> int:
    """Call ``main(args)`` in every process of the run.

    A process that torchrun starts anew after a failure goes on from the last checkpoint, as with ``--resume``.

    Returns:
        the exit code: 0, 1 for a mistake that its message explains, or 128 + the number of the signal that ended it.
    """
    if dist.is_torchelastic_launched():
        args.resume = args.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        return _run_as_one_of_torchruns(main, args)
    if args.num_gpus * args.num_machines <= 1:
        return _run_telling_mistakes(main, args)
    try:
        launch(_exit_with_code, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(main, args))
    except torch.multiprocessing.ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    return 0


def _run_as_one_of_torchruns(main: Callable[[Namespace], None], args: Namespace) -> int:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store over restarts, with the addresses of dead processes in it (pytorch/pytorch#135712).
    store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        return _run_telling_mistakes(main, args)
    finally:
        dist.destroy_process_group()


def _exit_with_code(main: Callable[[Namespace], None], args: Namespace) -> None:
    """One of several processes that ``launch`` waits for: what it raised would reach the user as a traceback."""
    code = _run_telling_mistakes(main, args)
    if code:
        sys.exit(code)


def _run_telling_mistakes(main: Callable[[Namespace], None], args: Namespace) -> int:
    try:
        main(args)
    except (UserError, FloatingPointError) as error:
        return _tell(error)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return _tell(f"{error}; checkpoints written before are whole, --resume goes on from the last one")
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(mistake: object) -> int:
    rank = f" (process {comm.get_rank()})" if comm.get_world_size() > 1 else ""
    print(f"error{rank}: {mistake}", file=sys.stderr, flush=True)
    return 1
