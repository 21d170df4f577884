"""Average recall of class-agnostic proposals: whatever the categories, by COCO's thresholds and limits."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.evaluation import build_evaluator

from ..data import miniatures

SIZE = (miniatures.HEIGHT, miniatures.WIDTH)
NAME = "coco_2017_proposals_val"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two images of COCO, each with two objects of different categories; a third object is a crowd."""
    miniatures.register_only(tmp_path, monkeypatch)
    path = miniatures.write_coco(tmp_path, [1, 2], "val2017")
    content = json.loads(path.read_text())
    boxes = [(1, 0, 0, 20, 20), (1, 30, 10, 20, 20), (2, 0, 0, 20, 20), (2, 30, 10, 20, 20), (2, 40, 30, 10, 10)]
    content["annotations"] = [
        {
            **{"id": n, "image_id": image, "category_id": content["categories"][n]["id"], "bbox": [x, y, w, h]},
            **{"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h, "iscrowd": int(n == 5)},
        }
        for n, (image, x, y, w, h) in enumerate(boxes, 1)
    ]
    content["annotations"][-1]["segmentation"] = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    path.write_text(json.dumps(content))
    return tmp_path


def recall_of(tiny_config, folder, boxes: dict[int, list], masks: bool = False) -> dict:
    evaluator = build_evaluator(tiny_config, NAME, str(folder))
    for image_id, its in boxes.items():
        found = Instances(SIZE, pred_boxes=Boxes(torch.tensor(its)), scores=torch.linspace(0.9, 0.1, len(its)))
        found.pred_classes = torch.zeros(len(its), dtype=torch.int64)
        if masks:
            found.pred_masks = torch.zeros(len(its), *SIZE, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(found.pred_masks, its, strict=True):
                mask[int(y0) : int(y1), int(x0) : int(x1)] = True
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    return evaluator.evaluate()


def test_objects_of_all_categories_are_of_one(root):
    records = load_dataset(NAME)
    assert [len(record["annotations"]) for record in records] == [2, 3]
    assert {annotation["category_id"] for record in records for annotation in record["annotations"]} == {0}


def test_the_best_proposals_count_whatever_the_category(root, tiny_config, tmp_path):
    nothing = [[55.0, 40.0, 60.0, 45.0]]
    boxes = {
        1: [[0.0, 0, 20, 20], *nothing * 9, [30.0, 10, 50, 30]],  # its second object is the 11th proposal
        2: [[0.0, 0, 20, 15], *nothing * 100, [30.0, 10, 50, 30]],  # IoU 0.75 is 6 of 10 thresholds; then the 102nd
    }
    results = recall_of(tiny_config, tmp_path / "out", boxes, masks=True)
    expected = {"AR@10": 100 * 1.6 / 4, "AR@100": 100 * 2.6 / 4, "AR@300": 100 * 3.6 / 4}
    assert results == {"bbox": pytest.approx(expected), "segm": pytest.approx(expected)}
    written = json.loads((tmp_path / "out/proposals.json").read_text())
    assert len(written) == 11 + 102 and {proposal["category_id"] for proposal in written} == {1}


def test_boxes_alone(root, tiny_config, tmp_path):
    results = recall_of(tiny_config, tmp_path / "out", {1: [[0.0, 0, 20, 20]], 2: [[0.0, 0, 20, 20]]})
    assert results == {"bbox": pytest.approx(dict.fromkeys(("AR@10", "AR@100", "AR@300"), 50))}
