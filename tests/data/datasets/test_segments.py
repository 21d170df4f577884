"""COCO's panoptic format and ADE20k's as miniatures in their exact formats, and what they become."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_api

from uniperceiver_v2.data.datasets.builtin import register_digit_scenes, register_segmentation
from uniperceiver_v2.data.datasets.held_out import photos_of
from uniperceiver_v2.data.datasets.records import candidate_names
from uniperceiver_v2.data.datasets.segments import load_segments, read_segments
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.kinds import KINDS, kind_of_dataset

from .. import miniatures

KIND = KINDS["segmentation"]
CATEGORIES = [
    {"id": 200, "name": "rug-merged", "supercategory": "floor-stuff", "isthing": 0},
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 17, "name": "cat", "supercategory": "animal", "isthing": 1},
]
PERSON, CROWD, RUG = 1_000, 70_000, 5_000_000


def segment(number, category, **more):
    return {"id": number, "category_id": category, "area": 10, "bbox": [0, 0, 5, 5], "iscrowd": 0, **more}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A miniature of both data sets, registered."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    ids = np.zeros((40, 60), dtype=np.int64)
    ids[5:25, 5:25], ids[5:15, 40:58], ids[26:] = PERSON, CROWD, RUG
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)
    classes = np.zeros((40, 60), dtype=np.uint8)
    classes[:20], classes[20:, 30:] = 2, 1
    for path, pixels in (
        ("coco/panoptic_val2017/000000000139.png", colours),
        ("coco/val2017/000000000139.jpg", colours),
        ("ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", classes),
        ("ADEChallengeData2016/images/validation/ADE_val_00000001.jpg", colours),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / path)
    (tmp_path / "ADEChallengeData2016/objectInfo150.txt").write_text(miniatures.ADE20K_NAMES)
    write_panoptic(tmp_path, [segment(PERSON, 1), segment(CROWD, 17, iscrowd=1), segment(RUG, 200)])
    register_segmentation(str(tmp_path))
    return tmp_path


def write_panoptic(root: Path, segments, categories=CATEGORIES) -> None:
    image = {"id": 139, "file_name": "000000000139.jpg", "height": 40, "width": 60, "license": 2}
    annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
    content = {"info": {}, "licenses": [], "images": [image], "annotations": [annotation], "categories": categories}
    (root / "coco/annotations").mkdir(exist_ok=True)
    (root / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(content))


def test_cocos_panoptic_format(root):
    (record,) = load_segments("coco_panoptic_val")
    assert kind_of_dataset("coco_panoptic_val") is KIND
    metadata = MetadataCatalog.get("coco_panoptic_val")
    assert metadata.thing_classes == ["person", "cat", "rug-merged"]  # by their ids
    assert candidate_names("coco_panoptic_val") == ("person", "cat", "rug")
    assert metadata.is_stuff == [False, False, True] and metadata.category_ids == [1, 17, 200]
    assert record["file_name"] == str(root / "coco/val2017/000000000139.jpg") and photos_of(record) == {"coco:139"}
    ids, segments = read_segments(record)
    assert ids.shape == (40, 60) and {*np.unique(ids)} == {0, PERSON, CROWD, RUG}
    assert segments == [
        {"id": PERSON, "category_id": 0, "iscrowd": 0},
        {"id": CROWD, "category_id": 1, "iscrowd": 1},
        {"id": RUG, "category_id": 2, "iscrowd": 0},
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tree-merged", "wall-other-merged", "wall-brick"], ("tree", "wall", "wall brick")),
        (["water-other", "door-stuff", "window-blind"], ("water", "door", "window blind")),
        (["wall", "wall-other-merged"], ("wall", "wall-other-merged")),  # as words they would be the same
    ],
)
def test_names_of_stuff_become_words(root, names, words):
    categories = [{"id": n, "name": name, "supercategory": "x", "isthing": 0} for n, name in enumerate(names, 1)]
    write_panoptic(root, [segment(RUG, 1)], categories)
    load_segments("coco_panoptic_val")
    assert candidate_names("coco_panoptic_val") == words
    assert MetadataCatalog.get("coco_panoptic_val").thing_classes == names


def test_ade20ks_format(root):
    (record,) = load_segments("ade20k_val")
    assert MetadataCatalog.get("ade20k_val").thing_classes == ["wall", "building"]
    assert record["file_name"].endswith("images/validation/ADE_val_00000001.jpg")
    assert (record["height"], record["width"], record["image_id"]) == (40, 60, "ADE_val_00000001")
    ids, segments = read_segments(record)
    assert [(s["id"], s["category_id"]) for s in segments] == [(1, 0), (2, 1)]
    assert (ids == 0).sum() == 20 * 30


def configured(name):
    task = KIND.task_of("parts")
    return replace(task, settings=replace(task.settings, datasets=[name]))


@pytest.mark.parametrize("name", ["coco_panoptic_val", "ade20k_val"])
def test_what_training_and_evaluation_get(root, tiny_config, name):
    tiny_config.INPUT.MIN_SIZE_TRAIN, tiny_config.INPUT.MIN_SIZE_TEST = (80,), 80
    tiny_config.INPUT.RANDOM_FLIP = "none"
    (record,), mapper = KIND.training_data(tiny_config, configured(name))
    sample = mapper(record)
    assert sample["image"].shape == (3, 80, 120) and sample["task"] == "parts"
    instances = sample["instances"]
    # Crowds are not learned, and pixels of no segment belong to none.
    assert instances.gt_classes.tolist() == ([0, 2] if name.startswith("coco") else [0, 1])
    expected = [[10, 10, 50, 50], [0, 52, 120, 80]] if name.startswith("coco") else [[60, 40, 120, 80], [0, 0, 120, 40]]
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor(expected).float(), atol=2, rtol=0)
    assert not (instances.gt_masks.tensor[0] & instances.gt_masks.tensor[1]).any()
    records, mapper = KIND.test_data(tiny_config, name, KIND.task_of("segmentation"))
    sample = mapper(records[0])
    assert "instances" not in sample and sample["segment_ids"].shape == (40, 60)
    assert len(sample["segments"]) == (3 if name.startswith("coco") else 2)


def test_masks_follow_a_mirrored_image(root, tiny_config):
    tiny_config.INPUT.MIN_SIZE_TRAIN, tiny_config.INPUT.RANDOM_FLIP = (40,), "horizontal"
    (record,), mapper = KIND.training_data(tiny_config, configured("coco_panoptic_val"))
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        seen.add(tuple(mapper(record)["instances"].gt_boxes.tensor[0].tolist()))
    assert seen == {(5, 5, 25, 25), (35, 5, 55, 25)}


def test_datasets_of_one_task_have_the_same_classes(root):
    assert len(load_segments("ade20k_val", "ade20k_val")) == 2
    with pytest.raises(UserError, match="'ade20k_val' and 'coco_panoptic_val' of one task have different classes"):
        load_segments("ade20k_val", "coco_panoptic_val")


def test_wrong_files_are_named(root):
    write_panoptic(root, [segment(PERSON, 4)])
    with pytest.raises(UserError, match=f"segment {PERSON} of image 139 has category 4, which is not among"):
        load_segments("coco_panoptic_val")
    with pytest.raises(UserError, match=r"panoptic_train2017.json.*python datasets/prepare/coco_panoptic.py"):
        load_segments("coco_panoptic_train")
    (record,) = load_segments("ade20k_val")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(record["segments_file"])
    with pytest.raises(UnreadableImage, match=r"ADE_val_00000001.png"):
        read_segments(record)
    (root / "ADEChallengeData2016/objectInfo150.txt").write_text("Name\nwall\nwall, brick\n")
    MetadataCatalog.remove("ade20k_val")
    MetadataCatalog.get("ade20k_val").source = "x"
    with pytest.raises(UserError, match="two categories called 'wall'"):
        load_segments("ade20k_val")


def test_digit_scenes_are_in_cocos_panoptic_format(small_tree, catalogs):
    register_digit_scenes(str(small_tree), prefix="parted_")
    records = load_segments("parted_digit_scenes_panoptic_train")
    assert len(records) == 24
    annotations = json.loads((small_tree / "annotations/panoptic_train.json").read_text())["annotations"]
    instances = json.loads((small_tree / "annotations/instances_train.json").read_text())["annotations"]
    for record, annotation in zip(records, annotations, strict=True):
        ids, segments = read_segments(record)
        assert {*np.unique(ids).tolist()} == {s["id"] for s in segments}  # every pixel has a segment
        assert [int((ids == s["id"]).sum()) for s in segments] == [s["area"] for s in annotation["segments_info"]]
        assert segments[-1]["category_id"] == 10 and (ids == segments[-1]["id"]).sum() > 96 * 96 / 3
        own = [a for a in instances if a["image_id"] == record["image_id"]]
        assert [(s["category_id"] + 1, s["iscrowd"]) for s in segments[:-1]] == [
            (a["category_id"], a["iscrowd"]) for a in own
        ]
        for shown, a in zip(segments, own):
            if not a["iscrowd"]:  # a polygon has the ink, with a hole in it filled
                outline = mask_api.decode(mask_api.merge(mask_api.frPyObjects(a["segmentation"], 96, 96))).astype(bool)
                ink = ids == shown["id"]
                assert (ink & outline).sum() >= 0.9 * ink.sum() >= 0.4 * outline.sum()
