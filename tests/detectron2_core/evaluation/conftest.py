"""Random ground truth and detections, as annotation files and as outputs of a model."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH = 160, 200
CATEGORY_IDS = [2, 3, 5, 7]  # with gaps, as COCO's
NAMES = ["two", "three", "five", "seven"]


def _ellipse(box):
    """A mask [HEIGHT, WIDTH] inside a box x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
    return (inside <= 0.25).astype(np.uint8)


class Scenes:
    """Images 10, 11, ... with objects of all of COCO's sizes.

    The first image has no objects, and the second no detections. The third has objects of a category that is never
    detected. Every image with objects also has a crowd region. Detections are jittered objects, objects of the wrong
    category and boxes in crowds, with few distinct scores. Coordinates are multiples of 1/8, which any float represents
    exactly.
    """

    def __init__(self, seed, images=12, category_ids=CATEGORY_IDS):
        self.rng = np.random.default_rng(seed)
        self.category_ids = category_ids
        self.image_ids = list(range(10, 10 + images))
        self.objects = {i: self._objects(i) for i in self.image_ids}
        self.detections = {i: self._detections(i) for i in self.image_ids}

    def _box(self):
        size = self.rng.choice([12, 40, 120]) * self.rng.uniform(0.6, 1.2, 2)
        corner = self.rng.uniform(0, np.maximum([WIDTH, HEIGHT] - size, 1))
        return self._legal(np.concatenate([corner, corner + size]))

    def _legal(self, box):
        box = np.round(np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]) * 8) / 8
        box[2:] = np.maximum(box[2:], box[:2] + 2)
        return box

    def _objects(self, image_id):
        if image_id == self.image_ids[0]:
            return []
        boxes = [self._box() for _ in range(self.rng.integers(2, 9))]
        kinds = self.rng.integers(0, len(self.category_ids) - 1, len(boxes))
        if image_id == self.image_ids[2]:
            kinds[0] = len(self.category_ids) - 1
        return [(box, kind, i == 0 and image_id % 2 == 0) for i, (box, kind) in enumerate(zip(boxes, kinds))]

    def _detections(self, image_id):
        if image_id == self.image_ids[1]:
            return []
        found = []
        for box, kind, crowd in self.objects[image_id]:
            for _ in range(self.rng.integers(0, 3) + 2 * crowd):
                size = np.tile(box[2:] - box[:2], 2)
                jitter = self.rng.normal(0, 0.08, 4) * size
                right = self.rng.random() < 0.8
                found.append((self._legal(box + jitter), kind if right else (kind + 1) % 3))
        found += [(self._box(), self.rng.integers(0, 3)) for _ in range(self.rng.integers(1, 5))]
        scores = np.round(self.rng.uniform(0, 1, len(found)) * 16) / 16
        return [(box, int(kind), float(score)) for (box, kind), score in zip(found, scores)]

    def images(self):
        return [
            {
                "id": i,
                "height": HEIGHT,
                "width": WIDTH,
                "file_name": f"{i}.png",
                "coco_url": f"http://images.example/val/{i}.png",
            }
            for i in self.image_ids
        ]

    def annotations(self, crowds=True):
        """COCO annotations: polygons (the ellipse's box without a corner), and run lengths for crowds."""
        annotations = []
        for image_id, objects in self.objects.items():
            for box, kind, crowd in objects:
                x1, y1, x2, y2 = box.tolist()
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[kind],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[x1, y1, x2, y1, x2, (y1 + y2) / 2, (x1 + x2) / 2, y2, x1, y2]],
                    "area": (x2 - x1) * (y2 - y1) * 0.875,
                    "iscrowd": 0,
                }
                if crowd and crowds:
                    rle = mask_util.encode(np.asfortranarray(_ellipse(box)))
                    annotation["segmentation"] = {
                        "size": rle["size"],
                        "counts": rle["counts"].decode(),
                    }
                    annotation["iscrowd"] = 1
                annotations.append(annotation)
        return annotations

    def write_coco(self, path):
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, NAMES)]
        content = {"images": self.images(), "annotations": self.annotations(), "categories": categories}
        path.write_text(json.dumps(content))
        return str(path)

    def results(self, with_masks=True):
        """Detections in COCO's results format."""
        results = []
        for image_id, detections in self.detections.items():
            for box, kind, score in detections:
                x1, y1, x2, y2 = box.tolist()
                result = {
                    "image_id": image_id,
                    "category_id": self.category_ids[kind],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
                if with_masks:
                    rle = mask_util.encode(np.asfortranarray(_ellipse(box)))
                    result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
                results.append(result)
        return results

    def instances(self, image_id, with_masks=True):
        """Detections as a model returns them, in classes 0, 1, ..."""
        found = self.detections[image_id]
        instances = Instances((HEIGHT, WIDTH))
        boxes = np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores = torch.tensor([score for _, _, score in found], dtype=torch.float32)
        instances.pred_classes = torch.tensor([kind for _, kind, _ in found], dtype=torch.int64)
        if with_masks:
            masks = np.array([_ellipse(box) for box, _, _ in found], dtype=bool)
            instances.pred_masks = torch.from_numpy(masks.reshape(-1, HEIGHT, WIDTH))
        return instances

    def feed(self, evaluator, with_masks=True):
        """Gives an evaluator everything, in batches of two images."""
        evaluator.reset()
        for start in range(0, len(self.image_ids), 2):
            batch = self.image_ids[start : start + 2]
            inputs = [{"image_id": i, "height": HEIGHT, "width": WIDTH} for i in batch]
            evaluator.process(inputs, [{"instances": self.instances(i, with_masks)} for i in batch])


@pytest.fixture
def make_scenes():
    return Scenes


@pytest.fixture
def metadata(request):
    """The metadata of a dataset that only this test uses, removed afterwards."""
    name = request.node.name
    yield MetadataCatalog.get(name)
    MetadataCatalog.pop(name)
