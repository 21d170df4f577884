"""A model of two tasks that share parameters, trained in milliseconds, and data to train it on."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import nn

from uniperceiver_v2 import add_uniperceiver_v2_config
from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.engine import UniPerceiverTrainer

if "ToyTwoTasks" not in META_ARCH_REGISTRY:

    @META_ARCH_REGISTRY.register()
    class ToyTwoTasks(nn.Module):
        """One shared layer with dropout; "lines" adds a head of its own, "signs" has no other parameters."""

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


class TaskBatches:
    """The n-th batch of a task as a pure function of its name and n."""

    def __init__(self, task: str, start_batch: int):
        self.task, self.next = task, start_batch

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(1000 * len(self.task) + self.next)
        self.next += 1
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
    def build_task_loader(cls, cfg, task, start_batch):
        return TaskBatches(task, start_batch)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        batches = TaskBatches("lines", 10_000)
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
