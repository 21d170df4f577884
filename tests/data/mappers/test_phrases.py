import copy

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from uniperceiver_v2.data import build_task_train_loader, build_test_loader
from uniperceiver_v2.data.datasets.phrases import load_phrases
from uniperceiver_v2.data.mappers.images import DetectionMapper
from uniperceiver_v2.data.mappers.phrases import GroundingMapper
from uniperceiver_v2.data.order import numpy_draws_from

PHRASES = {"KIND": "grounding", "DATASETS": ["tiny_digit_scenes_phrases_train"], "IMS_PER_BATCH": 4}


def drawn(mapper, record, seed):
    with numpy_draws_from(np.random.default_rng(seed)):
        return mapper(record)


@pytest.fixture
def cfg(tiny, config):
    return config(phrases=PHRASES)


def test_what_training_gets(cfg):
    for seed, record in enumerate(load_phrases("tiny_digit_scenes_phrases_train")[:10]):
        before = copy.deepcopy(record)
        sample = drawn(GroundingMapper(cfg, "phrases", is_train=True, count=5), record, seed)
        assert record == before
        assert sample.keys() == {
            *("task", "image", "height", "width", "file_name", "image_id", "phrases", "instances", "phrase_objects"),
        }
        # The instances are detection's.
        cfg.INPUT.RANDOM_FLIP = "none"
        instances = sample["instances"]
        assert set(instances.get_fields()) == {"gt_boxes", "gt_masks"}
        assert len(instances) == sum(not a["iscrowd"] for a in record["annotations"])
        assert sample["phrase_objects"].shape == (5, len(instances)) and sample["phrase_objects"].dtype == torch.bool
        known = {entry["phrase"]: entry["objects"] for entry in record["phrases"]}
        assert len(set(sample["phrases"])) == 5 and set(sample["phrases"]) <= known.keys()
        scale = sample["image"].shape[1] / 96
        for phrase, row in zip(sample["phrases"], sample["phrase_objects"], strict=True):
            boxes = [record["annotations"][i]["bbox"] for i in sorted(known[phrase])]
            expected = [[x * scale, y * scale, (x + w) * scale, (y + h) * scale] for x, y, w, h in boxes]
            torch.testing.assert_close(instances.gt_boxes.tensor[row], torch.tensor(expected).reshape(-1, 4))


def test_instances_are_those_of_detection(cfg):
    record = load_phrases("tiny_digit_scenes_phrases_train")[1]
    ours = drawn(GroundingMapper(cfg, "phrases", is_train=True, count=5), record, 3)
    theirs = drawn(DetectionMapper(cfg, "scenes", ("zero",), is_train=True), record, 3)
    assert torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert torch.equal(ours["instances"].gt_masks.tensor, theirs["instances"].gt_masks.tensor)


def test_what_evaluation_gets(cfg):
    cfg.INPUT.MIN_SIZE_TEST = 120
    record = load_phrases("tiny_digit_scenes_phrases_test")[0]
    sample = GroundingMapper(cfg, "grounding", is_train=False)(record)
    assert sample.keys() == {"task", "image", "height", "width", "file_name", "image_id", "phrases", "phrase_boxes"}
    assert sample["image"].shape == (3, 120, 120)
    assert sample["phrases"] == tuple(entry["phrase"] for entry in record["phrases"])
    for entry, boxes in zip(record["phrases"], sample["phrase_boxes"], strict=True):
        expected = [record["annotations"][i]["bbox"] for i in entry["objects"]]
        assert [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()] == expected


def photo(tmp_path, annotations: list[dict], phrases: list[tuple[str, list[int]]]) -> dict:
    """A record of a picture that is dark on its left."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    made = [{"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0, **a} for a in annotations]
    entries = [{"phrase": phrase, "objects": objects} for phrase, objects in phrases]
    return {"file_name": str(tmp_path / "photo.png"), "image_id": 1, "annotations": made, "phrases": entries}


BOX, OUTLINE = [2, 2, 10, 10], [[2, 2, 12, 2, 12, 12, 2, 12]]


@pytest.mark.parametrize(
    ("phrase", "mirrored"),
    [
        ("a boat", True),
        ("bright righteousness of the leftovers", False),  # on the safe side
        ("the boat on the LEFT", False),
        ("rightmost", False),
        ("guy on r", False),
        ("lft boat", False),
        ("her hair", True),
        ("aright", True),
    ],
)
def test_only_what_says_no_side_is_mirrored(cfg, tmp_path, phrase, mirrored):
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = "horizontal", (40,), True
    record = photo(tmp_path, [{"bbox": BOX}], [("a sail", [0]), (phrase, [0])])
    mapper = GroundingMapper(cfg, "phrases", is_train=True, count=1)
    sides = set()
    for seed in range(20):
        sample = drawn(mapper, record, seed)
        assert sample["image"].shape == (3, 40, 60)  # never cropped
        dark_left = bool(sample["image"][0, 0, 0] < 100)
        sides.add(dark_left)
        assert sample["instances"].gt_boxes.tensor[0, 0].item() == (2 if dark_left else 48)
    assert sides == ({True, False} if mirrored else {True})
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert (
        len({tuple(drawn(GroundingMapper(cfg, "p", True, 1), record, s)["image"][0, :, 0].tolist()) for s in range(9)})
        == 1
    )


def test_crowds_and_what_is_left_of_nothing(cfg, tmp_path):
    """A phrase loses what cannot be found; left without anything it is not asked for, as nothing would be wrong."""
    annotations = [{"bbox": BOX}, {"bbox": BOX, "iscrowd": 1}, {"bbox": [70, 2, 5, 5]}, {"bbox": [20, 2, 9, 9]}]
    phrases = [("crowd", [1]), ("outside", [2]), ("some", [0, 1, 3]), ("nothing", [])]
    sample = drawn(GroundingMapper(cfg, "p", True, 9), photo(tmp_path, annotations, phrases), 0)
    found = dict(zip(sample["phrases"], sample["phrase_objects"].tolist()))
    assert found == {"some": [True, True], "nothing": [False, False]}
    assert len(sample["instances"]) == 2


def test_masks_only_where_all_have_one(cfg, tmp_path):
    with_mask, without = {"bbox": BOX, "segmentation": OUTLINE}, {"bbox": [20, 2, 9, 9]}
    for annotations, expected in (([with_mask, with_mask], True), ([with_mask, without], False), ([without], False)):
        record = photo(tmp_path, annotations, [("boat", [0])])
        assert drawn(GroundingMapper(cfg, "p", True, 9), record, 0)["instances"].has("gt_masks") == expected
    cfg.MODEL.MASK_ON = False
    record = photo(tmp_path, [with_mask], [("boat", [0])])
    assert not drawn(GroundingMapper(cfg, "p", True, 9), record, 0)["instances"].has("gt_masks")


def test_a_task_node_trains_and_a_test_set_is_evaluated(cfg):
    batch = next(iter(build_task_train_loader(cfg, "phrases")))
    assert len(batch) == 4 and all(sample["task"] == "phrases" and len(sample["phrases"]) <= 16 for sample in batch)
    samples = [sample for batch in build_test_loader(cfg, "tiny_digit_scenes_phrases_test") for sample in batch]
    assert len({sample["image_id"] for sample in samples}) == len(samples) == 12
