"""Pictures of detections and annotations: shapes are drawn at their places and are large enough."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from uniperceiver_v2.visualization import draw_detections, draw_test_scenes

NAMES = ["zero", "one"]


def detections(scores=(0.9, 0.1)) -> Instances:
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, 20:40, 10:30] = True
    masks[1, 60:80, 60:80] = True
    return Instances(
        (96, 96),
        pred_boxes=Boxes(torch.tensor([[10.0, 20, 30, 40], [60, 60, 80, 80]])),
        pred_classes=torch.tensor([1, 0]),
        scores=torch.tensor(scores),
        pred_masks=masks,
    )


def changed(picture: np.ndarray, scale: int) -> np.ndarray:
    """For each pixel of the original, grey image, whether it was drawn on: [96,96]."""
    difference = np.abs(picture.astype(int) - 128).max(-1) > 8
    return difference.reshape(96, scale, 96, scale).any((1, 3))


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((96, 96, 3), 128, np.uint8)


def test_small_images_are_enlarged_and_detections_above_the_threshold_drawn(grey):
    picture = draw_detections(grey, detections(), NAMES, score_threshold=0.5)
    assert picture.shape == (384, 384, 3)
    assert picture.dtype == np.uint8
    drawn = changed(picture, 4)
    assert drawn[22:38, 12:28].all(), "the mask is filled"
    assert not drawn[60:80, 60:80].any(), "the second detection is below the threshold"
    assert (
        drawn[62:78, 62:78].mean() < changed(draw_detections(grey, detections(), NAMES, 0.05), 4)[62:78, 62:78].mean()
    )


def test_large_images_keep_their_size():
    image = np.full((400, 500, 3), 128, np.uint8)
    instances = Instances((400, 500), pred_boxes=Boxes(torch.zeros(0, 4)))
    instances.pred_classes, instances.scores = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    assert np.array_equal(draw_detections(image, instances, NAMES), image)


def test_boxes_alone_are_drawn(grey):
    instances = detections()
    instances.remove("pred_masks")
    drawn = changed(draw_detections(grey, instances, NAMES), 4)
    assert drawn[20:41, 10].all()
    assert drawn[20:41, 30].all()


class FixedModel(nn.Module):
    """Predicts the same two digits for each image, and counts the images."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, batch):
        assert not self.training
        self.images += [item["image_id"] for item in batch]
        return [{"instances": detections()} for _ in batch]


def test_test_scenes_stand_beside_their_annotations(tmp_path, grey):
    records = []
    for index in range(5):
        path = str(tmp_path / f"scene_{index}.png")
        cv2.imwrite(path, grey)
        annotation = {
            "bbox": [60, 60, 80, 80],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": [[60, 60, 80, 60, 80, 80, 60, 80]],
        }
        records.append({"image_id": index, "file_name": path, "height": 96, "width": 96, "annotations": [annotation]})
    DatasetCatalog.register("drawn_scenes_test", lambda: records)
    MetadataCatalog.get("drawn_scenes_test").thing_classes = NAMES
    try:
        model = FixedModel().train()
        loader = [[dict(record) for record in records[:2]], [dict(record) for record in records[2:]]]
        paths = draw_test_scenes(
            model, loader, "drawn_scenes_test", str(tmp_path / "drawn"), count=3, score_threshold=0.5
        )
    finally:
        DatasetCatalog.remove("drawn_scenes_test")
        MetadataCatalog.remove("drawn_scenes_test")
    assert model.training
    assert model.images == [0, 1, 2]
    assert [path.rsplit("/", 1)[1] for path in paths] == ["scene_0.png", "scene_1.png", "scene_2.png"]
    picture = cv2.imread(paths[0])[-384:]
    assert picture.shape == (384, 768, 3)
    predicted, annotated = changed(picture[:, :384], 4), changed(picture[:, 384:], 4)
    assert predicted[22:38, 12:28].all()
    assert not predicted[62:78, 62:78].any()
    assert annotated[62:78, 62:78].all()
    assert not annotated[22:38, 12:28].any()
