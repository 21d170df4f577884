"""A model of two tasks with shared parameters that trains in milliseconds, and the smallest real run of all five
kinds."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # it and tensorboard are imported by a run, which takes one that was forked before some seconds
import torch.distributed as dist
import torch.utils.tensorboard
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from uniperceiver_v2 import add_uniperceiver_v2_config
from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.data.order import CountFrom
from uniperceiver_v2.engine import UniPerceiverTrainer

if "ToyTwoTasks" not in META_ARCH_REGISTRY:

    @META_ARCH_REGISTRY.register()
    class ToyTwoTasks(nn.Module):
        """One shared layer with dropout. "lines" also has its own head, "signs" has no other parameters."""

        def __init__(self, cfg: CfgNode):
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.dropout = nn.Dropout(0.2)
            self.line = nn.Linear(4, 1)

        def forward(self, batch: list[dict[str, Any]]):
            x = torch.stack([item["x"] for item in batch])
            hidden = self.dropout(self.shared(x))
            if not self.training:
                return [{"value": value} for value in self.line(hidden)[:, 0]]
            get_event_storage().put_scalar("temperature", 0.5)
            if batch[0]["task"] == "lines":
                value = self.line(hidden)[:, 0]
                return {
                    "loss_square": ((value - x.sum(1)) ** 2).mean(),
                    "loss_size": 0.1 * value.abs().mean(),
                }
            return {"loss_sign": nn.functional.softplus(-hidden * x.sign()).mean()}

        def loss_count(self, batch: list[dict[str, Any]]) -> int:
            return len(batch)


class TaskBatches:
    """The n-th batch of a task as a pure function of its name and n."""

    def __init__(self, task: str, numbers: Iterable[int]):
        self.task, self.numbers = task, iter(numbers)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(1000 * len(self.task) + next(self.numbers))
        return [{"task": self.task, "x": torch.randn(4, generator=generator)} for _ in range(8)]


class ErrorEvaluator(DatasetEvaluator):
    def reset(self):
        self.errors = []

    def process(self, inputs, outputs):
        self.errors += [abs(i["x"].sum() - o["value"]).item() for i, o in zip(inputs, outputs)]

    def evaluate(self):
        return {"lines": {"error": sum(self.errors) / len(self.errors)}}


class ToyTrainer(UniPerceiverTrainer):
    @classmethod
    def build_task_loader(cls, cfg, task, numbers):
        return TaskBatches(task, numbers)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        batches = TaskBatches("lines", CountFrom(10_000))
        return [next(batches) for _ in range(3)]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return ErrorEvaluator()


@pytest.fixture
def toy_trainer() -> type[UniPerceiverTrainer]:
    return ToyTrainer


def toy_config(output_dir: str) -> CfgNode:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ToyTwoTasks"
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = output_dir
    cfg.SEED = 3
    cfg.TASKS.NAMES = ["lines", "signs"]
    cfg.TASKS.lines = CfgNode({**task_defaults("lines", "detection"), "SAMPLING_RATIO": 2.0})
    cfg.TASKS.signs = CfgNode(task_defaults("signs", "classification"))
    cfg.DATASETS.TEST = ("toy_lines_test",)
    cfg.SOLVER.MAX_ITER = 60
    cfg.SOLVER.BASE_LR = 0.02
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.WEIGHT_AVERAGING = 0.9
    return cfg


@pytest.fixture
def cfg(tmp_path):
    DatasetCatalog.register("toy_lines_test", lambda: [{}])
    yield toy_config(str(tmp_path / "output"))
    DatasetCatalog.remove("toy_lines_test")


@pytest.fixture
def real_cfg(tiny_config, small_tree, catalogs, tmp_path) -> CfgNode:
    """Settings of a run of the smallest complete model with a task of each kind, on real files. An iteration takes
    some 0.2 s."""
    register_digit_scenes(str(small_tree), prefix="small_")
    cfg = tiny_config
    cfg.SEED = 7
    cfg.MODEL.MASK_ON = True
    cfg.OUTPUT_DIR = str(tmp_path / "real")
    cfg.MODEL.PIXEL_STD = [64.0, 64.0, 64.0]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (64, 80), "none"
    for task, dataset in (
        ("scenes", "small_digit_scenes_train"),
        ("digits", "small_digits_train"),
        ("captions", "small_digit_scenes_captions_train"),
        ("pairs", "small_digit_scenes_captions_train"),
        ("corpus", "small_digit_corpus_train"),
        ("phrases", "small_digit_scenes_phrases_train"),
    ):
        cfg.TASKS[task].DATASETS, cfg.TASKS[task].IMS_PER_BATCH = [dataset], 4
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 10, 2, 1e-3
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.WEIGHT_AVERAGING = 0.9
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def fork(work: Callable[[], Any]) -> int:
    """Starts a process that does the work, and returns its pid. It exits with 0, with SystemExit's code, or with 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # nothing of pytest's may run here


def fork_ranks(work: Callable[[], Any], folder: Path, world_size: int = 2) -> list[int]:
    """:func:`fork` for each rank of a process group on the CPU. Ranks meet in a new file in ``folder``."""
    meeting = folder / f"meeting{len(list(folder.glob('meeting*')))}"

    def as_rank(rank: int) -> None:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world_size)
        comm.create_local_process_group(world_size)
        work()
        dist.destroy_process_group()

    return [fork(lambda rank=rank: as_rank(rank)) for rank in range(world_size)]


def exit_code(pid: int) -> int:
    """The exit code of a process after it has ended, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def processes() -> Any:
    """The functions ``fork``, ``fork_ranks`` and ``exit_code``."""
    return sys.modules[__name__]
