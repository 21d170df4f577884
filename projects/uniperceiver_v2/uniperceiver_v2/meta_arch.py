"""UniPerceiverV2 as Detectron2 builds it: the model and its tasks, one of which handles each batch."""

from __future__ import annotations

from collections.abc import Callable
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

    ``model(inputs)`` takes Detectron2's list of dicts. In training mode it returns the losses of the batch's task. In
    evaluation mode it returns a list of predictions. "task" in the inputs names a task of the configuration or a kind
    of task. The default is "detection".

    Args:
        tasks: all tasks by name, and a task for each kind by the kind's name.
        parts: the arguments of :class:`~uniperceiver_v2.modeling.model.UniPerceiver`.
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
        for name in reversed(cfg.TASKS.NAMES):  # a kind's name stands for its first trained task
            tasks[cfg.TASKS[name].KIND] = tasks[name]
        return {**super().from_config(cfg), "tasks": tasks}

    def forward(self, inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        task = self._task_of(inputs)
        if self.training:
            return task.losses(self, inputs)
        with torch.no_grad():
            return _by_image_size(inputs, lambda alike: task.predict(self, alike))

    def loss_count(self, inputs: list[dict]) -> int:
        """The number of things over which the losses of a batch are means, see ``Task.loss_count``."""
        return self._task_of(inputs).loss_count(inputs)

    def _task_of(self, inputs: list[dict]) -> Task:
        name = inputs[0].get("task", "detection")
        if name not in self.tasks:
            raise KeyError(f"no task or kind of task {name!r}; there are {', '.join(self.tasks)}")
        return self.tasks[name]


def _by_image_size(inputs: list[dict], predict: Callable[[list[dict]], list[dict]]) -> list[dict]:
    """Predictions in the order of the inputs, computed for images of one size at a time: nothing is padded for the sake
    of a neighbour, so no result depends on one."""
    places: dict[tuple[int, ...] | None, list[int]] = {}
    for place, item in enumerate(inputs):
        places.setdefault(tuple(item["image"].shape[-2:]) if "image" in item else None, []).append(place)
    predictions: list[dict] = [{}] * len(inputs)
    for alike in places.values():
        for place, prediction in zip(alike, predict([inputs[place] for place in alike]), strict=True):
            predictions[place] = prediction
    return predictions
