import copy
import json
import os
import subprocess
import sys

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_json,
    get_lvis_instances_meta,
    load_coco_json,
    load_lvis_json,
    register_coco_instances,
    register_lvis_instances,
)
from detectron2.structures import BoxMode


def test_register_coco_instances(coco_content, write, name, tmp_path):
    json_file = write(coco_content)
    register_coco_instances(name, {"note": "mine"}, json_file, str(tmp_path))
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == json_file and metadata.image_root == str(tmp_path)
    assert metadata.evaluator_type == "coco" and metadata.note == "mine"
    records = DatasetCatalog.get(name)
    assert metadata.thing_classes == ["two", "five"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1}
    assert [record["image_id"] for record in records] == [3, 7, 9]
    assert records[0]["file_name"] == str(tmp_path / "3.png")
    assert (records[1]["width"], records[1]["height"]) == (20, 40)
    assert [[a["category_id"] for a in record["annotations"]] for record in records] == [[0, 1, 0], [1], []]
    assert records[0]["annotations"][0] == {
        "iscrowd": 0,
        "bbox": [5.0, 2.0, 12.0, 10.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[5.0, 2.0, 17.0, 2.0, 17.0, 12.0, 5.0, 12.0]],
    }
    crowd = records[0]["annotations"][2]
    assert crowd["iscrowd"] == 1 and mask_util.decode(crowd["segmentation"]).sum() == 8 * 15


def test_coco_without_a_name_keeps_ids(coco_content, write, tmp_path):
    records = load_coco_json(write(coco_content), str(tmp_path), extra_annotation_keys=["score"])
    assert [a["category_id"] for a in records[0]["annotations"]] == [2, 5, 2]
    assert records[1]["annotations"][0]["score"] == 0.5


def test_coco_uncompressed_run_lengths(coco_content, write, tmp_path):
    coco_content["annotations"] = coco_content["annotations"][:1]
    counts = [45, 3, 20 * 40 - 48]  # three pixels of the second column
    coco_content["annotations"][0]["segmentation"] = {"size": [40, 20], "counts": counts}
    segmentation = load_coco_json(write(coco_content), str(tmp_path))[1]["annotations"][0]["segmentation"]
    mask = mask_util.decode(segmentation)
    assert mask.sum() == 3 and mask[5:8, 1].all()


def test_coco_polygons_without_area_are_left_out(coco_content, write, tmp_path):
    good = coco_content["annotations"][1]["segmentation"][0]
    coco_content["annotations"][1]["segmentation"] = [[1, 2, 3, 4], good, [1, 2, 3, 4, 5, 6, 7]]
    coco_content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    (first, crowd) = load_coco_json(write(coco_content), str(tmp_path))[0]["annotations"]
    assert first["segmentation"] == [good] and crowd["iscrowd"] == 1


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"category_id": 4}, KeyError, "category_id=4"),
        ({"id": 2}, AssertionError, "not unique"),
        ({"bbox": []}, ValueError, "empty 'bbox'"),
        ({"ignore": 1}, AssertionError, "ignore"),
    ],
)
def test_coco_faults(coco_content, write, name, tmp_path, change, error, message):
    coco_content["annotations"][2].update(change)
    with pytest.raises(error, match=message):
        load_coco_json(write(coco_content), str(tmp_path), name)


def test_convert_to_coco_json(coco_content, write, name, tmp_path):
    """Converted to COCO's format and loaded again, records are the same."""
    register_coco_instances(name, {}, write(copy.deepcopy(coco_content)), str(tmp_path))
    DatasetCatalog.get(name)
    output = tmp_path / "new" / "converted.json"
    convert_to_coco_json(name, str(output))
    converted = json.loads(output.read_text())
    assert {c["id"]: c["name"] for c in converted["categories"]} == {2: "two", 5: "five"}
    assert {i["id"]: (i["width"], i["height"]) for i in converted["images"]} == {
        3: (40, 20),
        7: (20, 40),
        9: (40, 20),
    }
    before = sorted(coco_content["annotations"], key=lambda a: (a["image_id"], a["bbox"]))
    after = sorted(converted["annotations"], key=lambda a: (a["image_id"], a["bbox"]))
    assert sorted(a["id"] for a in after) == [1, 2, 3, 4]
    for old, new in zip(before, after):
        for key in ("image_id", "category_id", "bbox", "iscrowd", "segmentation", "area"):
            assert new[key] == old[key], key


def test_converted_json_is_kept(name, tmp_path):
    output = tmp_path / "converted.json"
    output.write_text("kept")
    convert_to_coco_json(name, str(output))
    assert output.read_text() == "kept"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.png", "height": 2, "width": 3}])
    MetadataCatalog.get(name).thing_classes = ["cat"]
    convert_to_coco_json(name, str(output), allow_cached=False)
    converted = json.loads(output.read_text())
    assert [image["width"] for image in converted["images"]] == [3]
    assert converted["categories"] == [{"id": 0, "name": "cat"}]


@pytest.fixture
def lvis_content(coco_content):
    for image in coco_content["images"]:
        image["coco_url"] = f"http://images.example/val2017/{image.pop('file_name')}"
    coco_content["images"][0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    coco_content["categories"] = [
        {"id": i, "name": f"name {i}", "synonyms": [f"synonym_{i}", "other"], "frequency": "f"} for i in (3, 1, 2)
    ]
    coco_content["annotations"] = [a for a in coco_content["annotations"] if not a.pop("iscrowd")]
    for annotation, category in zip(coco_content["annotations"], (3, 1, 2)):
        annotation["category_id"] = category
    return coco_content


def test_load_lvis_json(lvis_content, write):
    records = load_lvis_json(write(lvis_content), "root/")
    assert [record["image_id"] for record in records] == [3, 7, 9]
    assert records[0]["file_name"] == os.path.join("root/val2017", "3.png")
    assert records[1]["neg_category_ids"] == [2] and records[1]["not_exhaustive_category_ids"] == [1]
    assert records[0]["neg_category_ids"] == [] and records[0]["not_exhaustive_category_ids"] == []
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]
    assert records[1]["annotations"] == [
        {
            "bbox": [4.0, 6.0, 10.0, 20.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 2,
            "segmentation": [[4.0, 6.0, 14.0, 6.0, 14.0, 26.0, 4.0, 26.0]],
        }
    ]
    extra = load_lvis_json(write(lvis_content), "root/", extra_annotation_keys=["area"])
    assert extra[1]["annotations"][0]["area"] == 200


def test_lvis_with_coco_categories(lvis_content, write, name):
    register_lvis_instances(name + "_cocofied", {}, write(lvis_content), "root/")
    try:
        records = DatasetCatalog.get(name + "_cocofied")
        metadata = MetadataCatalog.get(name + "_cocofied")
        assert metadata.evaluator_type == "lvis"
        assert metadata.thing_classes == MetadataCatalog.get("coco_2017_val").thing_classes
        assert records[1]["annotations"][0]["category_id"] == 2
    finally:
        DatasetCatalog.remove(name + "_cocofied")
        MetadataCatalog.remove(name + "_cocofied")


def test_lvis_categories_of_unknown_versions(lvis_content, write):
    with pytest.raises(ValueError, match="no_such_lvis"):
        get_lvis_instances_meta("no_such_lvis")
    with pytest.raises(ValueError, match="no_such_lvis"):
        load_lvis_json(write(lvis_content), "root/", "no_such_lvis")


@pytest.mark.parametrize("fault", ["polygon", "id"])
def test_lvis_faults(lvis_content, write, fault):
    if fault == "polygon":
        lvis_content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    else:
        lvis_content["annotations"][0]["id"] = 2
    with pytest.raises(AssertionError):
        load_lvis_json(write(lvis_content), "root/")


@pytest.mark.skipif("detectron2_core" not in detectron2.__file__, reason="upstream keeps the last of them")
@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("load", [load_coco_json, load_lvis_json])
def test_of_two_entries_with_an_id_none_is_lost(coco_content, lvis_content, write, tmp_path, key, load):
    content = coco_content if load is load_coco_json else lvis_content
    content[key].append({**content[key][0]})
    with pytest.raises(ValueError, match=f"Two {key} in .* have the same id"):
        load(write(content), f"{tmp_path}/")


COCO_FACTS = {"person": 1, "stop sign": 13, "backpack": 27, "dining table": 67, "toothbrush": 90}


def test_coco_metadata():
    metadata = MetadataCatalog.get("coco_2017_val")
    assert len(set(metadata.thing_classes)) == 80
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert sorted(ids.values()) == list(range(80)) and list(ids) == sorted(ids)
    assert {metadata.thing_classes[ids[i]]: i for i in COCO_FACTS.values()} == COCO_FACTS


@pytest.mark.parametrize(
    "dataset, images, annotations",
    [
        ("coco_2014_train", "coco/train2014", "coco/annotations/instances_train2014.json"),
        ("coco_2017_train", "coco/train2017", "coco/annotations/instances_train2017.json"),
        ("coco_2017_val", "coco/val2017", "coco/annotations/instances_val2017.json"),
        ("coco_2017_test-dev", "coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
        ("lvis_v1_train", "coco/", "lvis/lvis_v1_train.json"),
        ("lvis_v1_val", "coco/", "lvis/lvis_v1_val.json"),
    ],
)
def test_builtin_paths(dataset, images, annotations):
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    assert dataset in DatasetCatalog
    metadata = MetadataCatalog.get(dataset)
    assert metadata.image_root == os.path.join(root, images)
    assert metadata.json_file == os.path.join(root, annotations)
    assert metadata.evaluator_type == dataset.split("_")[0]


BUILTIN_SCRIPT = """
from detectron2.data import DatasetCatalog, MetadataCatalog
before = len(MetadataCatalog.get("lvis_v1_train").thing_classes)
(record,) = DatasetCatalog.get("lvis_v1_val")
(coco,) = DatasetCatalog.get("coco_2017_val")
print(before, len(MetadataCatalog.get("lvis_v1_val").thing_classes), record["file_name"], coco["file_name"])
"""


def test_builtin_datasets_under_a_root_of_the_users(tmp_path):
    """LVIS's 1203 categories are known, although only the validation file exists."""
    image = {"id": 1, "height": 4, "width": 4, "file_name": "1.png", "coco_url": "http://x/train2017/1.png"}
    categories = [{"id": i + 1, "name": f"{i}", "synonyms": [f"{i}"], "frequency": "f"} for i in range(1203)][::-1]
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "lvis_v1_val.json").write_text(
        json.dumps({"images": [image], "annotations": [], "categories": categories})
    )
    metadata = MetadataCatalog.get("coco_2017_val")
    categories = [
        {"id": i, "name": metadata.thing_classes[index]}
        for i, index in metadata.thing_dataset_id_to_contiguous_id.items()
    ]
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(
        json.dumps({"images": [image], "annotations": [], "categories": categories})
    )
    ran = subprocess.run(
        [sys.executable, "-c", BUILTIN_SCRIPT],
        env=os.environ | {"DETECTRON2_DATASETS": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    expected = ["1203", "1203", f"{tmp_path}/coco/train2017/1.png", f"{tmp_path}/coco/val2017/1.png"]
    assert ran.stdout.split()[-4:] == expected


def test_masks_of_both_formats_agree(coco_content, write, tmp_path):
    """A crowd's run lengths give the same mask after loading as in the file."""
    (crowd,) = [a for a in coco_content["annotations"] if a["iscrowd"]]
    loaded = load_coco_json(write(coco_content), str(tmp_path))[0]["annotations"][2]["segmentation"]
    np.testing.assert_array_equal(mask_util.decode(loaded), mask_util.decode(crowd["segmentation"]))
