"""Own data by configuration: parts for training and tests, what is left out, and a run."""

import json

import pytest
from detectron2.data import MetadataCatalog

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader, load_dataset, register_custom_datasets
from uniperceiver_v2.data.datasets.records import load_detection_training
from uniperceiver_v2.errors import UserError

from .files import IDS, coco, write_coco, write_yolo

pytestmark = pytest.mark.usefixtures("catalogs")


def test_parts_divide_a_dataset_and_keep_every_category_for_training(images):
    node = write_coco(images, IDS["texts"])
    parts = {part: {**node, "PART": part, "TEST_SHARE": 0.4} for part in ("train", "test")}
    register_custom_datasets(parts)
    train, test = ({r["image_id"] for r in load_dataset(part)} for part in ("train", "test"))
    assert train | test == {"a.jpg", "b", "ç"} and not train & test and test
    assert len(load_detection_training(["train"], filter_empty=True, with_masks=True)) == len(train)
    assert MetadataCatalog.get("train").thing_classes == MetadataCatalog.get("test").thing_classes


def test_parts_depend_on_the_texts_alone(tmp_path):
    lines = [f"text {n}" for n in range(200)]
    tested = []
    for order in (lines, lines[::-1], lines + lines[:50]):
        (tmp_path / "a.txt").write_text("\n".join(order))
        node = {"FORMAT": "text_lines", "FILE": str(tmp_path / "a.txt"), "TEST_SHARE": 0.2}
        register_custom_datasets({part: {**node, "PART": part} for part in ("train", "test")})
        tested.append({r["text"] for r in load_dataset("test")})
        assert tested[-1].isdisjoint(r["text"] for r in load_dataset("train"))
    assert tested[0] == tested[1] == tested[2] and 20 < len(tested[0]) < 60


def test_datasets_of_the_same_pictures_test_the_same_ones(tmp_path):
    """Otherwise a model would have seen in training, as classes, what it is tested on, as captions."""
    for name in ("classes", "captions"):
        rows = [f"{n}.png,{'ab'[n % 2]}" for n in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,text", *(rows if name == "classes" else rows[::-1])]))
    node = {"IMAGES": str(tmp_path / "pictures"), "COLUMNS": ["image", "text"], "PART": "test"}
    register_custom_datasets(
        {
            "classes": {"FORMAT": "class_csv", "FILE": str(tmp_path / "classes.csv"), **node},
            "captions": {"FORMAT": "caption_csv", "FILE": str(tmp_path / "captions.csv"), **node},
        }
    )
    classes, captions = ({r["file_name"] for r in load_dataset(name)} for name in ("classes", "captions"))
    assert classes == captions and 4 < len(classes) < 20


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_records_have_a_training_part_and_of_two_a_test_part(tmp_path, count):
    (tmp_path / "a.txt").write_text("\n".join(f"text {n}" for n in range(count)))
    node = {"FORMAT": "text_lines", "FILE": str(tmp_path / "a.txt"), "TEST_SHARE": 0.01}
    register_custom_datasets({part: {**node, "PART": part} for part in ("train", "test")})
    assert len(load_dataset("train")) == max(count - 1, 1)
    if count == 1:
        with pytest.raises(UserError, match="'test' is empty"):
            load_dataset("test")


def test_pictures_are_left_out_by_their_paths(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    node = {**write_coco(images, IDS["texts"]), "LEFT_OUT": ["images/1.png"]}
    register_custom_datasets({"own": node, "folders": {**write_yolo(images), "LEFT_OUT": [str(images / "0.png")]}})
    assert [r["image_id"] for r in load_dataset("own")] == ["a.jpg", "ç"]
    assert [r["image_id"] for r in load_dataset("folders")] == ["1.png", "2.png"]


def test_a_category_without_pictures_is_told_and_does_not_end_the_run(images, logged):
    """Programs write such categories, as a heading of the others or as a list of all that there are."""
    node = write_coco(images, ((7, 90, 3), (5, 1, 300)))
    content = coco((7, 90, 3), (5, 1, 300))
    content["categories"].append({"id": 0, "name": "vessels"})
    (images.parent / "objects.json").write_text(json.dumps(content))
    register_custom_datasets({"own": node})
    assert len(load_detection_training(["own"], filter_empty=True, with_masks=True)) == 3
    assert any("no training image shows these categories of own: vessels" in message for message in logged())


def test_a_configuration_alone_trains_and_tests(images, tmp_path):
    node = json.dumps(write_yolo(images))
    (tmp_path / "run.yaml").write_text(
        f"""
MODEL: {{META_ARCHITECTURE: UniPerceiverV2, MASK_ON: False, DEVICE: cpu}}
INPUT: {{MIN_SIZE_TRAIN: [40], MIN_SIZE_TEST: 40}}
DATALOADER: {{NUM_WORKERS: 0}}
DATASETS:
  CUSTOM: {{my_boats: {node}}}
  TEST: [my_boats]
TASKS:
  NAMES: [boats]
  boats: {{KIND: detection, DATASETS: [my_boats], IMS_PER_BATCH: 2}}
"""
    )
    cfg = load_config(str(tmp_path / "run.yaml"), ["SOLVER.MAX_ITER", "5", "SOLVER.WARMUP_ITERS", "0"])
    batch = next(iter(build_task_train_loader(cfg, "boats")))
    assert batch[0]["candidates"] == ("bird", "boat", "buoy")
    assert not batch[0]["instances"].has("gt_masks") and len(batch[0]["instances"]) > 0
    assert sum(map(len, build_test_loader(cfg, "my_boats"))) == 3
    with pytest.raises(UserError, match="unknown dataset 'my_boat'; did you mean 'my_boats'"):
        load_config(str(tmp_path / "run.yaml"), ["DATASETS.TEST", "('my_boat',)"])
    again = load_config(str(tmp_path / "run.yaml"), ["DATASETS.CUSTOM.my_boats.SPLIT", "nowhere"], training=False)
    assert again.DATASETS.CUSTOM.my_boats.SPLIT == "nowhere"
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        load_dataset("my_boats")
