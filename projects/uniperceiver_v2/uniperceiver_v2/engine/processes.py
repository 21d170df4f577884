"""The processes of a run: a single one, processes that this one starts, by Detectron2's ``launch`` on GPUs, or
processes started by torchrun, srun or their like."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm

from ..errors import UserError
from .members import check_members, introduce
from .starters import is_started_with_others, refuse_lonely_copies, told_by_starter
from .stopping import SIGNALS
from .watch import Watch

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL = 0.02  # seconds between two reads of the store

Main = Callable[[Namespace], None]


def add_process_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add ``--num-processes`` to the arguments of Detectron2's ``default_argument_parser``."""
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        help="number of processes on the CPU of this machine, which share its cores. For GPUs: --num-gpus",
    )
    return parser


def _num_cpu_processes(args: Namespace) -> int:
    return getattr(args, "num_processes", 1)  # programs with Detectron2's own parser do not have the option


def _joins_others(args: Namespace) -> bool:
    """Whether the environment describes the run's processes. srun may also start one launcher on each machine, whose
    arguments describe them."""
    return is_started_with_others() and (args.num_machines == 1 or "RANK" in os.environ)


def world_size(args: Namespace) -> int:
    """The number of processes of the run.

    Args:
        args: the arguments of :func:`add_process_arguments`, or of Detectron2's ``default_argument_parser`` alone.

    Raises:
        UserError: this machine has too few GPUs; both a starter and the arguments set the number of processes; or
            several processes are started that do not know of each other.
    """
    if _joins_others(args):
        if args.num_gpus != 1 or args.num_machines != 1 or _num_cpu_processes(args) != 1:
            raise UserError(
                "torchrun or its like starts the processes: --num-gpus, --num-processes and --num-machines are for "
                "runs without it"
            )
        return int((told_by_starter() or os.environ)["WORLD_SIZE"])
    refuse_lonely_copies(args)
    if _num_cpu_processes(args) < 1:
        raise UserError(f"--num-processes must be at least 1, not {_num_cpu_processes(args)}")
    if _num_cpu_processes(args) > 1:
        if args.num_gpus != 1 or args.num_machines != 1:
            raise UserError("--num-processes is for the CPU of one machine: leave out --num-gpus and --num-machines")
        return _num_cpu_processes(args)
    gpus = torch.cuda.device_count()
    if args.num_gpus > max(gpus, 1):
        hint = "" if gpus else f"; for processes on the CPU: --num-processes {args.num_gpus}"
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {gpus}{hint}")
    return max(args.num_gpus * args.num_machines, 1)


def run_in_processes(main: Main, args: Namespace, cfg: CfgNode) -> int:
    """Call ``main(args)`` in every process of the run.

    If torchrun restarts a process after a failure, the process goes on from the last checkpoint, as with ``--resume``.

    Args:
        main: the program of one process. The messages of its UserErrors and FloatingPointErrors are printed.
        args: the arguments of :func:`add_process_arguments`, or of Detectron2's ``default_argument_parser`` alone.
        cfg: the run's settings. ``MODEL.DEVICE`` decides between nccl and gloo.

    Returns:
        the exit code: 0, 1 after an error that was printed, or 128 + the number of the signal that ended a process.
    """
    if _joins_others(args):
        return _telling_mistakes(lambda: _run_as_one_of_several(main, args, cfg))
    on_cpu = _num_cpu_processes(args)
    if on_cpu > 1 and cfg.MODEL.DEVICE != "cpu":
        return _tell(f"--num-processes {on_cpu}: MODEL.DEVICE is {cfg.MODEL.DEVICE}. For GPUs there is --num-gpus")
    if on_cpu <= 1 and args.num_gpus * args.num_machines <= 1:
        return _telling_mistakes(lambda: main(args))
    try:
        with _signals_reach_children():
            if on_cpu > 1:
                _launch_on_cpu(main, args, cfg, on_cpu)
            else:
                work, place = (main, args, cfg), (args.num_gpus, args.num_machines, args.machine_rank)
                launch(_exit_with_code, *place, args.dist_url, work, timeout=_timeout(cfg))
    except torch.multiprocessing.ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    return 0


def _timeout(cfg: CfgNode) -> timedelta:
    return timedelta(seconds=cfg.PROCESSES.TIMEOUT)


def _launch_on_cpu(main: Main, args: Namespace, cfg: CfgNode, count: int) -> None:
    """What ``launch`` does, for a machine whose GPUs are not to be used: ``launch`` would take nccl there."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"  # unlike a port, nobody else can take it
        torch.multiprocessing.start_processes(_run_on_cpu, (main, args, cfg, count, meeting), nprocs=count)


def _run_on_cpu(rank: int, main: Main, args: Namespace, cfg: CfgNode, count: int, meeting: str) -> None:
    if "OMP_NUM_THREADS" not in os.environ:  # each process would have as many threads as there are cores
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    dist.init_process_group("gloo", meeting, _timeout(cfg), rank=rank, world_size=count)
    comm.create_local_process_group(count)
    _exit_with_code(main, args, cfg)
    dist.destroy_process_group()


def _run_as_one_of_several(main: Main, args: Namespace, cfg: CfgNode) -> int:
    """The program of a process that a starter has started together with others."""
    os.environ.update(told_by_starter() or {})  # from here on, srun's processes look like torchrun's
    store, rank, size = next(dist.rendezvous("env://"))
    start, is_first = agree_on_start(store, rank, size)
    store = dist.PrefixStore(start, store)
    members = introduce(store, rank, size, cfg.MODEL.DEVICE)
    check_members(members)
    mine = members[rank]
    on_gpu = mine.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(mine.local_rank)
    args.resume = args.resume or not is_first or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_timeout(cfg))
    try:
        comm.create_local_process_group(mine.local_size)
        watch = Watch(store, members, rank, cfg.PROCESSES.SILENCE)
        # Each machine counts its own restarts only. Nobody goes on before all have connected: a connection to a process
        # that has already ended would wait without end.
        args.resume = any(comm.all_gather(args.resume))
        with watch:
            # Mistakes are told before the group ends, as that may wait for a process that is gone.
            return _telling_mistakes(lambda: main(args))
    finally:
        dist.destroy_process_group()


def agree_on_start(store: dist.Store, rank: int, size: int) -> tuple[str, bool]:
    """A name for this start of all processes that no earlier start had, and whether it is the first start in this
    store.

    When torchrun restarts processes it keeps its store, with the addresses of dead processes in it
    (pytorch/pytorch#135712). Its machines may disagree about the number of the restart. Therefore each process writes a
    random token, and the first rank joins all tokens to a list. A start is valid once every process has found its own
    token in the list.

    Args:
        store: the store that all processes share.
        rank, size: the rank of this process, and the number of processes.
    """
    mine = uuid.uuid4().hex
    store.set(f"hello/{rank}", mine)
    while True:
        if rank == 0:
            store.set("start", ",".join(store.get(f"hello/{other}").decode() for other in range(size)))
        present = store.get("start").decode()
        start = hashlib.blake2b(present.encode(), digest_size=8).hexdigest()
        if mine in present.split(","):
            store.set(f"{start}/found/{rank}", "")
        if rank == 0 and store.check([f"{start}/found/{other}" for other in range(size)]):
            # The order matters: "started" is set before any process may go on, so that the next start sees this one.
            store.set(f"{start}/first", "" if store.check(["started"]) else "first")
            store.set("started", start)
            store.set(f"{start}/go", "")
        if mine in present.split(",") and store.check([f"{start}/go"]):
            return start, store.get(f"{start}/first") == b"first"
        time.sleep(_POLL)


@contextlib.contextmanager
def _signals_reach_children() -> Iterator[None]:
    """While it is active, this process handles a signal by waiting until its children have ended.

    SIGTERM and SIGUSR1 are passed on to the children. SIGINT is not, as the terminal sends it to all processes.
    """

    def pass_on(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            if number != signal.SIGINT and child.pid is not None:
                os.kill(child.pid, number)

    usual = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _exit_with_code(main: Main, args: Namespace, cfg: CfgNode) -> None:
    """The program of a process that ``launch`` starts. An exception would reach the user as a traceback, an exit
    code does not."""
    store = dist.distributed_c10d._get_default_store()
    rank = comm.get_rank()
    members = introduce(store, rank, comm.get_world_size(), cfg.MODEL.DEVICE)
    watch = Watch(store, members, rank, cfg.PROCESSES.SILENCE)
    comm.synchronize()  # as above
    with watch:
        code = _telling_mistakes(lambda: main(args))
    if code:
        sys.exit(code)


def _telling_mistakes(work: Callable[[], int | None]) -> int:
    """The exit code of the work, after its mistake, if any, was printed."""
    try:
        return work() or 0
    except (UserError, FloatingPointError) as error:
        return _tell(error)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return _tell(f"{error}; checkpoints written before are whole, --resume goes on from the last one")
    except KeyboardInterrupt:
        return 130


def _tell(mistake: object) -> int:
    rank = os.environ.get("RANK", comm.get_rank())
    several = is_started_with_others() or comm.get_world_size() > 1
    print(f"error (process {rank}): {mistake}" if several else f"error: {mistake}", file=sys.stderr, flush=True)
    return 1
