"""Pictures of predictions for TensorBoard, drawn during training without an effect on it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from ..data import same_images
from ..kinds import KINDS, TaskKind, evaluating_task, kind_of_dataset
from ..visualization import scene_picture

logger = logging.getLogger(__name__)

COUNT = 4  # pictures that are drawn each time


class PredictionPictures(HookBase):
    """Puts pictures of the first test images into the storage every ``period`` iterations.

    The images are those of one dataset: the first dataset of the first kind of task that draws on images. Other kinds
    that are tested on the same images add to the picture. For example, if detection and captioning are tested on the
    same images, a picture has detections beside annotations, and the caption below.

    The predictions are made with the weights of ``trainer.averaged_weights()``. Training gives the same bytes with and
    without pictures.

    Register this hook on the main process only, before the hook that writes TensorBoard's events. Other processes take
    no part in drawing.

    Args:
        model: the model, without a wrapper for several processes.
        datasets: the tested datasets. ``trainer.build_test_loader(trainer.cfg, name)`` loads them.
        period: iterations between pictures, at least 1.
    """

    def __init__(self, model: nn.Module, datasets: Sequence[str], period: int):
        self._model = model
        self._period = period
        self._shown = _shown_together(datasets)
        self._samples: list[dict[str, Any]] = []
        self._records: dict[Any, dict[str, Any]] = {}

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period or not self._shown:
            return
        with _unchanged(self._model):
            if not self._samples:
                self._load()
            self._model.eval()
            with self.trainer.averaged_weights(), torch.no_grad(), EventStorage():  # the storage is for the model
                pictures = self._draw()
        for index, picture in enumerate(pictures):
            image = np.ascontiguousarray(picture.transpose(2, 0, 1))
            self.trainer.storage.put_image(f"{self._shown[0][0]}/{index}", image)

    def _load(self) -> None:
        name = self._shown[0][0]
        cfg = self.trainer.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # workers would start for a few images only
        loader = self.trainer.build_test_loader(cfg, name)
        self._samples = list(itertools.islice(itertools.chain.from_iterable(loader), COUNT))
        shown = {sample["image_id"] for sample in self._samples}
        self._records = {r["image_id"]: r for r in DatasetCatalog.get(name) if r["image_id"] in shown}

    def _draw(self) -> list[np.ndarray]:
        parts: list[dict[str, Any]] = [{} for _ in self._samples]
        for name, kind in self._shown:
            task = evaluating_task(self.trainer.cfg, name).name
            predictions = self._model([{**sample, "task": task} for sample in self._samples])
            for part, prediction in zip(parts, predictions):
                part.update(kind.picture(name, prediction))
        return [scene_picture(self._records[sample["image_id"]], **part) for sample, part in zip(self._samples, parts)]


def _shown_together(datasets: Sequence[str]) -> list[tuple[str, TaskKind]]:
    """One dataset for each kind that draws on images. All of them have the same images."""
    shown: list[tuple[str, TaskKind]] = []
    for kind in KINDS.values():
        if kind.picture is None:
            continue
        own = [name for name in datasets if kind_of_dataset(name) is kind]
        # Equal image ids do not mean equal images.
        fitting = [name for name in own if not shown or same_images(name, shown[0][0])]
        shown += [(name, kind) for name in fitting[:1]]
    return shown


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores the mode of each module and the states of all random number generators afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
