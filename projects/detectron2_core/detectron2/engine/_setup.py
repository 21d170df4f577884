"""The calls of a training script before training. Public as part of ``detectron2.engine.defaults``."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch.nn.parallel import DistributedDataParallel


def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    """Wrap the model in ``DistributedDataParallel``. With a single process it returns the model itself.

    Args:
        model: on the device of this process.
        fp16_compression: whether gradients are sent as float16.
        kwargs: the arguments of ``DistributedDataParallel``. ``device_ids`` defaults to the GPU of this process's local
            rank. A model on the CPU needs ``device_ids=None``.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog=None) -> argparse.ArgumentParser:
    """The command line of a training script; ``epilog`` replaces the examples at the end of its help."""
    script = sys.argv[0]
    examples = f"""
Examples:

On one machine:
    $ {script} --num-gpus 8 --config-file cfg.yaml

With other settings:
    $ {script} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

On two machines:
    (machine0)$ {script} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {script} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output directory, if any"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine")
    # A user gets the same port every time. If processes of an earlier run still exist, the port is in use and the run
    # fails, so that the user notices them.
    uid = os.getuid() if hasattr(os, "getuid") else 1
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{2**15 + 2**14 + hash(uid) % 2**14}",
        help="where the processes of a distributed run meet, see torch.distributed.init_process_group",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=None, help="settings to change, as PATH.KEY VALUE pairs"
    )
    return parser


def default_setup(cfg, args):
    """The set-up of every job: output directory, loggers, a copy of its settings, random seeds.

    Writes ``config.yaml`` and ``log.txt`` into ``cfg.OUTPUT_DIR``. The seed of rank r is ``cfg.SEED + r``, or random if
    ``cfg.SEED`` is negative.

    Args:
        cfg: CfgNode, all settings of the job.
        args: the command line. ``config_file`` and ``eval_only`` are used if it has them.
    """
    output_dir = cfg.OUTPUT_DIR
    rank = comm.get_rank()
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment: %s", _environment())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info("Contents of %s:\n%s", config_file, file.read())
    if comm.is_main_process() and output_dir:
        logger.info("Running with full config:\n%s", cfg.dump())
        path = os.path.join(output_dir, "config.yaml")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info("Full config saved to %s", path)

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        # Not for an evaluation, which is too short for the search for the fastest algorithms to pay off.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def _environment() -> str:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"{platform.platform()}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, GPUs: {', '.join(devices) or 'none'}"
    )


def default_writers(output_dir: str, max_iter: int | None = None):
    """The writers of :class:`DefaultTrainer`: the progress line, ``metrics.json`` and TensorBoard events.

    Args:
        output_dir: the directory of the files, created if it does not exist.
        max_iter: the number of iterations of the training, for the time left.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
