"""Pictures of predictions: their content, and that they do not change training."""

import json
import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from uniperceiver_v2.engine import pictures

if "ToyPainter" not in META_ARCH_REGISTRY:

    @META_ARCH_REGISTRY.register()
    class ToyPainter(META_ARCH_REGISTRY.get("ToyTwoTasks")):
        """In evaluation it returns a detection or a caption for each image. It uses all random generators."""

        def __init__(self, cfg):
            super().__init__(cfg)
            self.frozen = nn.Dropout().eval()
            self.seen = []

        def forward(self, batch):
            if self.training:
                return super().forward(batch)
            self.seen.append((batch[0]["task"], [sample["image_id"] for sample in batch], self.shared.weight.sum()))
            get_event_storage().put_scalar("evaluated", 1.0)
            chance = torch.rand(1).item() + np.random.rand() + random.random()
            if batch[0]["task"] == "captioning":
                return [{"caption": f"a box in {sample['image_id']}", "chance": chance} for sample in batch]
            found = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), scores=torch.ones(1))
            found.pred_classes = torch.zeros(1, dtype=torch.long)
            return [{"instances": found, "chance": chance} for _ in batch]


@pytest.fixture
def painter(toy_trainer, cfg, tmp_path):
    """A trainer that draws its six images, and its configuration."""
    records = []
    for index in range(6):
        path = str(tmp_path / f"{index}.png")
        cv2.imwrite(path, np.full((64, 64, 3), 128, np.uint8))
        box = {"bbox": [20, 20, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        records.append({"image_id": index, "file_name": path, "height": 64, "width": 64, "annotations": [box]})
    for name, kind, root in (("toy_boxes", "coco", "a"), ("toy_captions", "coco_caption", "a")):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(evaluator_type=kind, image_root=root, thing_classes=["thing"])

    class Painter(toy_trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            cls.workers = cfg.DATALOADER.NUM_WORKERS
            return [[{**record, "task": "detection"} for record in records[i : i + 2]] for i in (0, 2, 4)]

        def evaluate(self):
            return {"nothing": {"here": 0.0}}

    cfg.MODEL.META_ARCHITECTURE = "ToyPainter"
    cfg.DATASETS.TEST = ("toy_captions", "toy_boxes")
    cfg.SOLVER.MAX_ITER = 40
    cfg.VIS_PERIOD = 15
    yield Painter, cfg
    for name in ("toy_boxes", "toy_captions"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(trainer_class, cfg, folder, **changes):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.train()
    return trainer


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def image(event):
    return cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def test_detections_stand_beside_annotations_above_the_caption(painter, tmp_path):
    trainer = train(*painter, tmp_path / "drawn")
    seen = events(tmp_path / "drawn")
    assert sorted(seen.Tags()["images"]) == [f"toy_boxes/{index}" for index in range(pictures.COUNT)]
    assert [event.step for event in seen.Images("toy_boxes/0")] == [14, 29]
    assert [entry[:2] for entry in trainer.model.seen[:2]] == [
        ("lines", [0, 1, 2, 3]),
        ("captioning", [0, 1, 2, 3]),
    ]
    picture = image(seen.Images("toy_boxes/0")[0])
    header, side = 24, 384  # six pixels for one of the image's
    assert picture.shape[1] == 2 * side
    left, right = picture[header : header + side, :side], picture[header : header + side, side:]
    assert (left[100, 50] != left[200, 300]).any() and (left[200, 300] == 128).all(), "the box is on the left"
    grey = np.abs(right.astype(int) - 128).max(-1) < 8
    assert grey[:100, :100].all() and not grey[120, 130:350].all(), "the annotation is on the right"
    below = picture[header + side :]
    assert below.shape[0] == 48 and below.min() < 100


def test_training_ends_in_the_same_bytes_with_pictures(painter, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "COUNT", 1)
    for averaging in (0.0, 0.9):
        painter[1].SOLVER.WEIGHT_AVERAGING = averaging
        train(*painter, tmp_path / f"with{averaging}")
        train(*painter, tmp_path / f"without{averaging}", VIS_PERIOD=0)
        files = [tmp_path / f"{name}{averaging}" / "model_final.pth" for name in ("with", "without")]
        assert files[0].read_bytes() == files[1].read_bytes()
        rows = [(file.parent / "metrics.json").read_text().splitlines() for file in files]
        assert [json.loads(row).keys() for row in rows[0]] == [json.loads(row).keys() for row in rows[1]]


def test_modes_and_random_states_are_as_before_and_weights_the_averages(painter, tmp_path):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    trainer = train(*painter, tmp_path / "trained", VIS_PERIOD=0)
    trainer.model.frozen.eval()
    hook = pictures.PredictionPictures(trainer.model, ["toy_boxes"], 3)
    hook.trainer, trainer.iter = trainer, 2
    weights, before = trainer.model.shared.weight.clone(), state()
    with EventStorage() as trainer.storage:
        hook.after_step()
    assert state() == before
    assert trainer.storage.latest() == {}
    assert [module.training for module in trainer.model.modules()] == [True, True, True, True, False]
    assert torch.equal(trainer.model.shared.weight, weights)
    with trainer.averaged_weights():
        assert trainer.model.seen[0][2] == trainer.model.shared.weight.sum() != weights.sum()
    assert painter[0].workers == 0 < painter[1].DATALOADER.NUM_WORKERS


@pytest.mark.parametrize(
    ("root", "datasets", "tasks"),
    [
        ("a", ("toy_boxes",), ["lines"]),
        ("b", ("toy_boxes", "toy_captions"), ["lines"]),
        ("a", ("toy_captions",), ["captioning"]),
        ("a", ("toy_lines_test",), []),
    ],
)
def test_what_is_drawn_is_what_is_tested(painter, tmp_path, root, datasets, tasks):
    painter[1].DATASETS.TEST = datasets
    if root != "a":
        vars(MetadataCatalog.get("toy_captions"))["image_root"] = root
    trainer = train(*painter, tmp_path / "drawn", VIS_PERIOD=3, SOLVER__MAX_ITER=4)
    assert [entry[0] for entry in trainer.model.seen] == tasks
    shown = events(tmp_path / "drawn")
    assert len(shown.Tags()["images"]) == (pictures.COUNT if tasks else 0)
    if tasks == ["captioning"]:
        assert image(shown.Images("toy_captions/0")[0]).shape == (384 + 48, 384, 3)
