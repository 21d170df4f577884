"""Visual Genome's regions, and digit_scenes' in its format, as samples of region captioning."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.builtin import register_digit_scenes
from uniperceiver_v2.data.datasets.visual_genome import register_region_descriptions
from uniperceiver_v2.data.mappers.regions import regions_of
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.kinds import KINDS, kind_of_dataset

KIND = KINDS["region_captioning"]


@pytest.fixture
def genome(tmp_path, catalogs):
    """Two images in Visual Genome's files, the second with two phrases for one box, in the "test" split alone."""
    regions = [
        (1, 71, "a cat", (2, 4, 20, 30)),
        (2, 72, "a dog", (0, 0, 30, 20)),
        (2, 73, "a brown dog", (0, 0, 30, 20)),
        (2, 74, "the sky", (10, 5, 50, 10)),
    ]
    descriptions, images = [], []
    for i in (1, 2):
        own = [
            {"region_id": n, "image_id": i, "phrase": phrase, "x": x, "y": y, "width": w, "height": h}
            for image, n, phrase, (x, y, w, h) in regions
            if image == i
        ]
        descriptions.append({"id": i, "regions": own})
        url = f"https://cs.stanford.edu/people/rak248/VG_100K/{i}.jpg"
        images.append({"image_id": i, "url": url, "width": 60, "height": 40, "coco_id": None, "flickr_id": None})
        (tmp_path / "VG_100K").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), 40 * i, np.uint8)).save(tmp_path / f"VG_100K/{i}.jpg")
    contents = {"regions": descriptions, "images": images, "splits": {"train": [1], "val": [], "test": [2]}}
    paths = {}
    for name, content in contents.items():
        paths[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = paths["regions"], paths["images"], str(tmp_path)
    split = (paths["splits"], "test")
    register_region_descriptions("regions_test", *files, split=split, evaluator_type="region_captions")
    register_region_descriptions("regions_all", *files, evaluator_type="region_captions")


def test_a_split_has_its_images(genome):
    assert kind_of_dataset("regions_test") is KIND
    (record,) = load_dataset("regions_test")
    assert record["image_id"] == 2 and len(load_dataset("regions_all")) == 2
    assert [(region.box, region.captions) for region in regions_of(record)] == [
        ((0, 0, 30, 20), ["a dog", "a brown dog"]),
        ((10, 5, 60, 15), ["the sky"]),
    ]


def test_a_phrase_of_several_objects_describes_none():
    record = {"annotations": [{"bbox": [0, 0, 2, 2], "bbox_mode": 1}] * 2, "phrases": []}
    record["phrases"] = [{"phrase": "both", "objects": [0, 1]}, {"phrase": "nothing", "objects": []}]
    assert regions_of(record) == []


def test_what_training_and_evaluation_get(genome, tiny_config):
    tiny_config.INPUT.MIN_SIZE_TRAIN, tiny_config.INPUT.MIN_SIZE_TEST = (80,), 80
    task = KIND.task_of("region_captioning")
    records, mapper = KIND.test_data(tiny_config, "regions_test", task)
    sample = mapper(records[0])
    assert sample["image"].shape == (3, 80, 120)
    assert sample["references"] == [["a dog", "a brown dog"], ["the sky"]] and "captions" not in sample
    expected = [[0, 0, 0.5, 0.5], [10 / 60, 5 / 40, 1, 15 / 40]]
    torch.testing.assert_close(sample["regions"], torch.tensor(expected))
    task.settings.datasets.append("regions_test")
    records, mapper = KIND.training_data(tiny_config, task)
    seen = set()
    for seed in range(12):
        with numpy_draws_from(np.random.default_rng(seed)):
            sample = mapper(records[0])
        assert len(sample["regions"]) == len(sample["captions"]) == len(sample["caption_token_ids"]) == 2
        for box, caption in zip(sample["regions"].tolist(), sample["captions"], strict=True):
            assert (caption == "the sky") == (box[2] == 1)
        seen.update(sample["captions"])
    assert seen == {"a dog", "a brown dog", "the sky"}


def test_digit_scenes_regions(small_tree, catalogs):
    register_digit_scenes(str(small_tree), prefix="seen_")
    records = load_dataset("seen_digit_scenes_regions_train")
    instances = json.loads((small_tree / "annotations/instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in instances["categories"]}
    for record in records:
        own = [a for a in instances["annotations"] if a["image_id"] == record["image_id"] and not a["iscrowd"]]
        found = regions_of(record)
        assert len(found) == len(own)
        for region, a in zip(found, own, strict=True):
            assert region.captions[0].split()[1:] == [a["color"], names[a["category_id"]]]
            assert f"{a['color']} {names[a['category_id']]}" in region.captions[1]
            x, y, w, h = a["bbox"]
            assert region.box == pytest.approx((x, y, x + w, y + h), abs=1)
