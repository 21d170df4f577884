"""Values of annotations that cannot be right, told when a dataset is read; and real ones, which all pass."""

import copy
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from uniperceiver_v2.data import load_dataset, register_custom_datasets
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.reading import annotations as module
from uniperceiver_v2.reading import check_annotations, check_instances
from uniperceiver_v2.reading.instances import problem_of
from uniperceiver_v2.reading.run_lengths import fit

HEIGHT, WIDTH = 60, 90


def squares(count: int = 3) -> dict:
    """A JSON of one image with squares in it, and a second image with nothing."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (5, 6)],
        "categories": [{"id": 11, "name": "red"}, {"id": 12, "name": "green"}],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": 5,
                "category_id": 11 + i % 2,
                "iscrowd": 0,
                "area": 400.0,
                "bbox": [10.0 * i, 10, 20, 20],
                "segmentation": [[10.0 * i, 10, 10.0 * i + 20, 10, 10.0 * i + 20, 30, 10.0 * i, 30]],
            }
            for i in range(count)
        ],
    }


def rle(height: int = HEIGHT, width: int = WIDTH) -> dict:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[3:9, 4:20] = 1
    encoded = mask_api.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def runs(*counts) -> dict:
    return {"size": [HEIGHT, WIDTH], "counts": list(counts)}


@pytest.fixture
def register(tmp_path, catalogs):
    """register(content): the path of its JSON, registered as "own" as a user does."""

    def put(content: dict) -> str:
        path = tmp_path / "own.json"
        path.write_text(json.dumps(content))
        register_coco_instances("own", {}, str(path), str(tmp_path))
        return str(path)

    return put


def polygon_with(value) -> dict:
    return {"segmentation": [[1, 1, 20, 1, 20, 20], [1, 1, value, 1, 20, 20, 5, 9]]}


BAD = {
    "huge coordinate": (polygon_with(1e9), "1000000000.0"),
    "NaN": (polygon_with(math.nan), "nan"),
    "infinity": (polygon_with(-math.inf), "-inf"),
    "no number": (polygon_with("7"), "'7'"),
    "nothing": (polygon_with(None), "None"),
    "nested": ({"segmentation": [[[1, 1], [2, 2], [3, 3]] * 2]}, "[1, 1]"),
    "a bit too far": (polygon_with(2 * WIDTH + 1), "181.0"),
    "a whole number beyond floats": (polygon_with(10**400), "1000000"),
    "endless outline": ({"segmentation": [[0, 0, WIDTH, 50] * 2000]}, "pixels long"),
    "box with NaN": ({"bbox": [1, 2, math.nan, 4]}, "nan"),
    "huge box": ({"bbox": [1, 2, 1e9, 4]}, "1000000000.0"),
    "box of three": ({"bbox": [1, 2, 3]}, "[1, 2, 3]"),
    "box of words": ({"bbox": "1234"}, "'1234'"),
    "unknown category": ({"category_id": 13}, "13"),
    "category as text": ({"category_id": "11"}, "'11'"),
    "crowd of two": ({"iscrowd": 2}, "2"),
    "RLE of another size": ({"segmentation": rle(WIDTH, HEIGHT)}, "60 x 90"),
    "RLE of huge size": ({"segmentation": {"size": [10**9, 10**9], "counts": "0"}}, "1000000000"),
    "RLE too short": ({"segmentation": {**rle(), "counts": rle()["counts"][:-1]}}, "do not fill"),
    "RLE of no runs": ({"segmentation": {**rle(), "counts": ""}}, "do not fill"),
    "RLE that goes on": ({"segmentation": {**rle(), "counts": "P" * 40}}, "do not fill"),
    "RLE of strange characters": ({"segmentation": {**rle(), "counts": "\u00e9\u20ac"}}, "do not fill"),
    "box of a negative width": ({"bbox": [4, 3, -2, 6]}, "[4, 3, -2, 6]"),
    "negative runs": ({"segmentation": runs(-10, HEIGHT * WIDTH + 10)}, "do not fill"),
    "too many runs": ({"segmentation": runs(10, HEIGHT * WIDTH)}, "do not fill"),
}


@pytest.mark.parametrize(("change", "value"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_told_with_file_annotation_and_value_in_training_and_in_evaluation(
    register, tmp_path, change, value
):
    content = squares()
    content["annotations"][1].update(change)
    path = register(content)
    for read in (lambda: load_dataset("own"), lambda: build_evaluator(get_cfg(), "own", str(tmp_path))):
        with pytest.raises(UserError) as caught:
            read()
        message = str(caught.value)
        assert path in message and value in message and "\n" not in message and len(message) < 600
        assert "annotation 101" in message


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"segmentation": runs(float(HEIGHT * WIDTH))}, "5400.0.* do not fill"),
        ({"area": "x"}, "'x'"),
        ({"area": math.nan}, "nan"),
        ({"area": -1}, "-1"),
    ],
    ids=str,
)
def test_what_detectron2_does_not_use_in_training_is_told_before_an_evaluation(register, tmp_path, change, value):
    content = squares()
    content["annotations"][1].update(change)
    path = register(content)
    load_dataset("own")
    with pytest.raises(UserError, match=f"{path}: annotation 101 .*{value}"):
        build_evaluator(get_cfg(), "own", str(tmp_path))


def test_an_earlier_annotation_that_is_only_left_out_is_not_the_one_that_is_told(register, tmp_path):
    content = squares()
    content["annotations"][0]["segmentation"] = [[3, 3, 4, 4]]
    content["annotations"][2].update(polygon_with(1e9))
    register(content)
    with pytest.raises(UserError, match="annotation 102 of image 5"):
        load_dataset("own")


def test_what_detectron2_leaves_out_of_training_is_told_before_an_evaluation(register, tmp_path):
    content = squares()
    content["annotations"][1]["segmentation"] = "polygon"
    register(content)
    assert len(load_dataset("own")[0]["annotations"]) == 2
    with pytest.raises(UserError, match=r"annotation 101 .*'polygon'"):
        build_evaluator(get_cfg(), "own", str(tmp_path))


ENTRIES = {
    "an image twice": (("images", 1), {"id": 5}, "two images have the id 5"),
    "an image's id beyond 64 bits": (("images", 1), {"id": 10**30}, '"id" 1000'),
    "an image's id of a float": (("images", 1), {"id": 6.0}, "id.* 6.0"),
    "an image's half pixel": (("images", 1), {"height": 60.5}, "image 6 has height 60.5"),
    "an image without a height": (("images", 1), {"height": None}, "image 6 has no height"),
    "a category twice": (("categories", 1), {"name": "red"}, "two categories are both called 'red'"),
    "a category without a text": (("categories", 1), {"name": None}, "a category has the name None"),
    "a category with an empty name": (("categories", 1), {"name": " "}, "a category has the name ' '"),
}


@pytest.mark.parametrize(("place", "change", "said"), ENTRIES.values(), ids=ENTRIES.keys())
def test_images_and_categories_are_told_before_an_evaluation(register, tmp_path, place, change, said):
    content = squares()
    content[place[0]][place[1]].update(change)
    path = register(content)
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        build_evaluator(get_cfg(), "own", str(tmp_path))


@pytest.mark.parametrize("ids", [(0, 1, 2), (7, 10**30, 3), ("x", "y", "z")])
def test_ids_of_annotations_do_not_change_results(register, tmp_path, ids):
    content = squares()
    for annotation, its_id in zip(content["annotations"], ids):
        annotation["id"] = its_id
    assert evaluated(register, tmp_path, content)["bbox"]["AP"] == pytest.approx(100)


def test_sides_such_as_60_point_0_are_made_whole(register, tmp_path):
    content = squares()
    content["images"][0]["height"] = float(HEIGHT)
    assert evaluated(register, tmp_path, content)["segm"]["AP"] == pytest.approx(100)


def test_boxes_alone_are_evaluated_where_an_object_has_no_segmentation(register, tmp_path):
    content = squares()
    del content["annotations"][1]["segmentation"]
    metrics = evaluated(register, tmp_path, content)
    assert set(metrics) == {"bbox"} and metrics["bbox"]["AP"] == pytest.approx(100)


def evaluated(register, tmp_path, content: dict) -> dict:
    """The metrics of predictions that are the annotations."""
    register(content)
    evaluator = build_evaluator(get_cfg(), "own", str(tmp_path))
    evaluator.reset()
    record = load_dataset("own")[0]
    assert record["height"] == HEIGHT and type(record["height"]) is int
    found = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([annotation["bbox"] for annotation in record["annotations"]])
    found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    found.pred_classes = torch.tensor([annotation["category_id"] for annotation in record["annotations"]])
    found.scores = torch.ones(len(boxes))
    found.pred_masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x, y, width, height) in zip(found.pred_masks, boxes.int().tolist()):
        mask[y : y + height, x : x + width] = True
    evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_formats_of_ones_own_tell_the_annotations_id(tmp_path, catalogs, form):
    content = squares()
    content["annotations"][1]["bbox"] = [1, 2, math.nan, 4]
    for category in content["categories"]:
        category["frequency"] = "f"
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_custom_datasets({"mine": {"FORMAT": form, "JSON": str(tmp_path / "own.json"), "IMAGES": str(tmp_path)}})
    with pytest.raises(UserError, match=r"own\.json.*annotation 101 of image 5 .*nan"):
        load_dataset("mine")


@pytest.mark.parametrize("side", [0, -5, 1e9, math.nan, "60", None, 59.5])
def test_an_image_of_no_size_is_told(side):
    content = squares()
    content["images"][0]["height"] = side
    if side is None:  # a record need not have one
        return check_instances("x.json", content)
    with pytest.raises(UserError, match=r"x\.json: annotation 100 of image 5 .*height"):
        check_instances("x.json", content)


def test_what_real_data_has_passes(register, tmp_path):
    content = squares(12)
    changes = [
        {"bbox": [-3.5, -0.2, WIDTH + 7, HEIGHT + 1]},  # slightly outside
        {"bbox": [5, 5, 0, 0]},
        {"segmentation": [[0.01, 59.99, 90.4, 60.3, -1, 12], [3, 3, 4, 4]]},  # a part without an area
        {"segmentation": [[3, 3, 4, 4]]},
        {"segmentation": [[3, 3, 4, 4, 5]]},
        {"segmentation": runs(10, 20, HEIGHT * WIDTH - 30), "iscrowd": 1},
        {"segmentation": rle(), "iscrowd": 1},
        {"segmentation": rle()},
        {"segmentation": []},
    ]
    for annotation, change in zip(content["annotations"], changes):
        annotation.update(change)
    content["annotations"][-1].pop("segmentation")
    content["annotations"][-2].pop("iscrowd")
    # An annotation of a missing image, which both readers ignore.
    content["annotations"].append({**content["annotations"][0], "id": 900, "image_id": 77, "bbox": [1e9] * 4})
    register(content)
    records = load_dataset("own")
    assert len(records[0]["annotations"]) == 12 - 2  # polygons with fewer than three points are left out
    build_evaluator(get_cfg(), "own", str(tmp_path))


def test_records_of_other_makers_are_checked(catalogs):
    good = {
        "file_name": "a.png",
        "image_id": 1,
        "annotations": [
            {
                "bbox": np.array([1.0, 2, 30, 40]),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": np.int64(1),
                "segmentation": [np.array([1.0, 1, 20, 1, 20, 20])],
            }
        ],
    }
    DatasetCatalog.register("made", lambda: [copy.deepcopy(good), copy.deepcopy(bad)])
    MetadataCatalog.get("made").thing_classes = ["a", "b"]
    for change, expected in (
        ({}, None),
        ({"category_id": 2}, "none of the 2 categories"),
        ({"bbox": np.array([1.0, 2, np.inf, 3])}, "inf"),
        ({"bbox_mode": BoxMode.XYWHA_ABS}, "bbox_mode"),
        ({"segmentation": [np.array([1.0, 1, 20, 1])]}, "4 coordinates"),
        ({"segmentation": [np.array([1.0, 1, 20, 1, 20, 1e9])]}, "1000000000.0"),
    ):
        bad = copy.deepcopy(good)
        bad["annotations"][0].update(change)
        bad["file_name"] = "b.png"
        if expected is None:
            assert len(load_dataset("made")) == 2
            continue
        with pytest.raises(UserError) as caught:
            load_dataset("made")
        assert "'made'" in str(caught.value) and "b.png" in str(caught.value) and expected in str(caught.value)


numbers = st.one_of(
    st.integers(-100, 200),
    st.floats(-100, 200),
    st.sampled_from([1e9, -1e9, math.nan, math.inf, None, True, "1", [1], 10**400]),
)
segmentation_values = st.one_of(
    st.none(),
    st.lists(st.lists(numbers, max_size=9), max_size=3),
    st.lists(st.lists(st.integers(-60, 120), min_size=6, max_size=6), max_size=2),
    st.fixed_dictionaries(
        {
            "size": st.sampled_from([[HEIGHT, WIDTH], [WIDTH, HEIGHT], [HEIGHT], None]),
            "counts": st.one_of(
                st.lists(st.integers(-3, HEIGHT * WIDTH), max_size=3),
                st.just([HEIGHT * WIDTH]),
                st.text("0123456789:;<=>?@ABCDEFP`oz", max_size=6),
                st.just(rle()["counts"]),
                st.none(),
            ),
        }
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "bbox": st.one_of(st.lists(numbers, min_size=3, max_size=5), st.just([1, 2, 3, 4]), st.none()),
            "category_id": st.sampled_from([11, 12, 13, "11", True, None, 11.0]),
            "iscrowd": st.sampled_from([0, 1, 2, None, "0"]),
            "segmentation": segmentation_values,
        }
    )
)
def test_looking_through_all_at_once_lets_nothing_pass_that_one_by_one_is_refused(annotation):
    image = {"height": HEIGHT, "width": WIDTH}
    if module._looks_right(module._Part([annotation], [image]), {11, 12}):
        assert problem_of(module.Instance(annotation, image, HEIGHT, WIDTH), {11, 12}, strict=True) is None


def test_runs_are_those_that_pycocotools_writes():
    rng = np.random.default_rng(0)
    encodings, areas = [], []
    for _ in range(200):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < rng.random()
        if rng.random() < 0.1:
            mask[:] = rng.random() < 0.5
        encodings.append(mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])
        areas.append(height * width)
    assert fit(encodings, np.array(areas))
    for number in range(len(encodings)):
        assert fit([encodings[number]], np.array([areas[number]]))
        assert not fit([encodings[number]], np.array([areas[number] + 1]))
        wrong = list(encodings)
        wrong[number] = wrong[number][:-1] + bytes([wrong[number][-1] ^ 1])
        assert not fit(wrong, np.array(areas))


def test_many_parts_are_all_looked_through(monkeypatch):
    monkeypatch.setattr(module, "_AT_A_TIME", 4)
    content = squares(0)
    content["images"] = [{"id": i, "file_name": "a", "height": HEIGHT, "width": WIDTH} for i in range(10)]
    content["annotations"] = [{**squares(1)["annotations"][0], "id": n, "image_id": n // 3} for n in range(30)]
    check_instances("x.json", content)
    for number in range(30):
        broken = copy.deepcopy(content)
        broken["annotations"][number]["segmentation"][0][3] = math.nan
        with pytest.raises(UserError, match=f"annotation {number} of image {number // 3} "):
            check_instances("x.json", broken)
    assert check_annotations("none", [{"label": 3}]) is None


def test_a_share_of_bad_annotations_is_left_out_and_counted_where_a_setting_says_so(register, caplog):
    content = squares(8)
    path = register(content)
    whole = load_dataset("own")[0]["annotations"]
    for number in (2, 5):
        content["annotations"][number]["segmentation"][0][3] = math.nan
    Path(path).write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 102 of image 5"):
        load_dataset("own")
    with pytest.raises(UserError, match=r"own\.json.*2 of 8 annotations are wrong.*MAX_BAD_ANNOTATIONS \(0\.2\)"):
        load_dataset("own", most_bad=0.2)
    with caplog.at_level(logging.WARNING):
        kept = load_dataset("own", most_bad=0.25)[0]["annotations"]
    assert kept == [annotation for number, annotation in enumerate(whole) if number not in (2, 5)]
    assert path in caplog.text and "2 of 8 annotations are left out" in caplog.text
