"""What the environment says about the other processes of a run: the variables of torchrun, of starters with the same
variables, and of Slurm's srun."""

from __future__ import annotations

import os
import re
from argparse import Namespace

import torch.distributed as dist

from ..errors import UserError

# {variable with the number of processes: its starter}. For Slurm it is the variable of a step of a job, as SLURM_NTASKS
# is also set in a batch script, which runs only once.
_SIZES = {
    "WORLD_SIZE": "whatever set WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}
# What a process has to know to find the others.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 15000, 10000  # of Slurm's runs; below 32768, where Linux takes ports for other connections


def is_started_with_others() -> bool:
    """Whether this process is one of several, and knows how to find the others."""
    return dist.is_torchelastic_launched() or told_by_starter() is not None


def told_by_starter() -> dict[str, str] | None:
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, from srun LOCAL_RANK as well. None for a process that is alone, or
    does not know how to find the others."""
    told = {name: os.environ.get(name, "") for name in _TOLD}
    if not told["WORLD_SIZE"] and _number("SLURM_STEP_NUM_TASKS") > 1:
        told = _told_by_slurm()
    numbers = [value for name, value in told.items() if name != "MASTER_ADDR"]
    complete = bool(told["MASTER_ADDR"]) and all(map(str.isdigit, numbers))
    return told if complete and int(told["WORLD_SIZE"]) > 1 else None


def _told_by_slurm() -> dict[str, str]:
    """The processes of a step of a job meet on the first host of its list, which has the first process. The port
    follows from the numbers of job and step, so that two runs on a host do not take the same."""
    job, step = _number("SLURM_JOB_ID"), _number("SLURM_STEP_ID")
    return {
        "RANK": os.environ.get("SLURM_PROCID", ""),
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or _first_host(os.environ.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_FIRST_PORT + (job + 37 * step) % _PORTS),
    }


def _first_host(hosts: str) -> str:
    """The first host of Slurm's short form, for example gpu07 of "gpu[07-09,12],login1"."""
    first = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^\[,]*))?", hosts)
    return "".join(part or "" for part in first.groups()) if first else ""


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else 0


def refuse_lonely_copies(args: Namespace) -> None:
    """Refuse to run as one of several processes that do not know of each other. Each would do the whole run, with
    one OUTPUT_DIR.

    Args:
        args: the arguments of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: the environment speaks of several processes, but not of how they find each other.
    """
    if args.num_machines > 1:
        return  # the arguments describe the processes
    for variable, starter in _SIZES.items():
        size = os.environ.get(variable, "1")
        if size in ("", "0", "1"):
            continue
        missing = [name for name in _TOLD if not os.environ.get(name, "")]
        lacking = f", but {', '.join(missing)} not" if variable == "WORLD_SIZE" and missing else ""
        raise UserError(
            f"{variable} is {size}{lacking}: {starter} seems to start several processes, each of which would do the "
            "whole run and write the same OUTPUT_DIR. Start them by torchrun --nproc_per_node N train_net.py ..., on "
            f"several machines once on each, set {', '.join(_TOLD)} (docs/training.md), or unset {variable} for runs "
            "of their own"
        )
