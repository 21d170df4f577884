"""UniPerceiverV2, as Detectron2 builds it: the model, and the tasks that each batch is handed to."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from .kinds import KINDS, configured_task
from .modeling.model import UniPerceiver
from .tasks import Task


@META_ARCH_REGISTRY.register()
class UniPerceiverV2(UniPerceiver):
    """A generalist model without task heads (Li et al., CVPR 2023).

    `model(inputs)` takes Detectron2's list of dicts. In training mode it returns the losses of the batch's task, in
    evaluation mode a list of predictions. Each input's "task" names a task of the configuration or a kind of task;
    without it, detection is meant.

    Args:
        tasks: by name and by kind.
        parts: of :class:`~uniperceiver_v2.modeling.model.UniPerceiver`.
    """

    @configurable
    def __init__(self, *, tasks: dict[str, Task], **parts: Any):
        super().__init__(**parts)
        self.tasks = tasks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        tasks = {name: kind.task.from_config(cfg, kind.task_of(name).settings) for name, kind in KINDS.items()}
        for name in cfg.TASKS:
            if name != "NAMES":
                task = configured_task(cfg, name)
                tasks[name] = task.kind.task.from_config(cfg, task.settings)
        for name in reversed(cfg.TASKS.NAMES):  # who asks for a kind gets its first trained task
            tasks[cfg.TASKS[name].KIND] = tasks[name]
        return {**super().from_config(cfg), "tasks": tasks}

    def forward(self, inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        task = self._task_of(inputs)
        if self.training:
            return task.losses(self, inputs)
        with torch.no_grad():
            return task.predict(self, inputs)

    def loss_count(self, inputs: list[dict]) -> int:
        """How many things the losses of a batch are means over, see `Task.loss_count`."""
        return self._task_of(inputs).loss_count(inputs)

    def _task_of(self, inputs: list[dict]) -> Task:
        name = inputs[0].get("task", "detection")
        if name not in self.tasks:
            raise KeyError(f"no task or kind of task {name!r}; there are {', '.join(self.tasks)}")
        return self.tasks[name]
