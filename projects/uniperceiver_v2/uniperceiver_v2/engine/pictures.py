"""What the model sees and says while it is trained: pictures for TensorBoard that leave training as it is."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from ..visualization import scene_picture

logger = logging.getLogger(__name__)

COUNT = 4  # pictures each time


class PredictionPictures(HookBase):
    """Every ``period`` iterations, puts pictures of the first test images into the storage.

    Of the first dataset of ``datasets`` that is tested for detection, what is found beside what is annotated; below, a
    caption, where captions are tested on the same images. With no such dataset, images with captions. The weights are
    those of ``trainer.averaged_weights()``. Training goes on to the same bytes as without pictures.

    To be registered on the main process alone, before the hook that writes TensorBoard's events. No other process is
    needed to draw.

    Args:
        model: not wrapped for several processes.
        datasets: tested ones; ``trainer.build_test_loader(trainer.cfg, name)`` loads them.
        period: iterations, at least 1.
    """

    def __init__(self, model: nn.Module, datasets: Sequence[str], period: int):
        self._model = model
        self._period = period
        detection = [name for name in datasets if _evaluator(name) in ("coco", "lvis")]
        captions = [name for name in datasets if _evaluator(name) == "coco_caption"]
        self._detected = detection[0] if detection else None
        if self._detected is not None:  # image ids of other images may be the same
            captions = [name for name in captions if _image_root(name) == _image_root(self._detected)]
        self._captioned = captions[0] if captions else None
        self._samples: list[dict[str, Any]] = []
        self._records: dict[Any, dict[str, Any]] = {}

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period or not (self._detected or self._captioned):
            return
        with _unchanged(self._model):
            if not self._samples:
                self._load()
            self._model.eval()
            with self.trainer.averaged_weights(), torch.no_grad(), EventStorage():  # for what the model may report
                pictures = self._draw()
        for index, picture in enumerate(pictures):
            self.trainer.storage.put_image(
                f"{self._detected or self._captioned}/{index}", np.ascontiguousarray(picture.transpose(2, 0, 1))
            )

    def _load(self) -> None:
        name = self._detected or self._captioned
        cfg = self.trainer.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # for a handful of images
        loader = self.trainer.build_test_loader(cfg, name)
        self._samples = list(itertools.islice(itertools.chain.from_iterable(loader), COUNT))
        shown = {sample["image_id"] for sample in self._samples}
        self._records = {r["image_id"]: r for r in DatasetCatalog.get(name) if r["image_id"] in shown}

    def _draw(self) -> list[np.ndarray]:
        instances: list[Any] = [None] * len(self._samples)
        captions: list[Any] = [None] * len(self._samples)
        names: Sequence[str] = ()
        if self._detected is not None:
            names = MetadataCatalog.get(self._detected).thing_classes
            instances = [found["instances"] for found in self._model(self._samples)]
        if self._captioned is not None:
            said = self._model([{**sample, "task": "captioning"} for sample in self._samples])
            captions = [prediction["caption"] for prediction in said]
        return [
            scene_picture(self._records[sample["image_id"]], found, names, caption=caption)
            for sample, found, caption in zip(self._samples, instances, captions)
        ]


def _evaluator(dataset_name: str) -> str | None:
    return MetadataCatalog.get(dataset_name).get("evaluator_type")


def _image_root(dataset_name: str) -> str | None:
    return MetadataCatalog.get(dataset_name).get("image_root")


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards, each module is in the mode it was in, and random numbers go on as if none had been drawn."""
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
