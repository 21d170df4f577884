"""Data in the usual formats can be used, and data that cannot be used gives a clear message."""

import json
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from uniperceiver_v2.data import (
    build_task_train_loader,
    build_test_loader,
    load_dataset,
    register_digit_scenes,
    register_image_folder,
)
from uniperceiver_v2.data.datasets.builtin import register_karpathy
from uniperceiver_v2.data.datasets.records import candidate_names
from uniperceiver_v2.errors import UserError

NAMES = [
    "digit_scenes_train",
    "digit_scenes_test",
    "digit_scenes_lvis_test",
    "digits_train",
    "digits_test",
    "digit_scenes_captions_train",
    "digit_scenes_captions_test",
    "digit_scenes_retrieval_train",
    "digit_scenes_retrieval_test",
    "digit_corpus_train",
    "digit_corpus_test",
]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def message_of(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def copy(tree, tmp_path, catalogs):
    """A copy of the tree that a test may damage, registered as copy_*."""
    shutil.copytree(tree, tmp_path / "digit_scenes")
    register_digit_scenes(str(tmp_path / "digit_scenes"), prefix="copy_")
    return tmp_path / "digit_scenes"


@pytest.fixture
def own_coco(tree, tmp_path, catalogs):
    """change(content) -> a changed copy of its COCO JSON, registered as "own" in the way a user does."""

    def build(change=lambda content: None, name: str = "own"):
        content = json.loads((tree / "annotations/instances_train.json").read_text())
        change(content)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tree / "images/train"))
        return content

    return build


def test_importing_registers_every_name():
    registered = set(DatasetCatalog.list())
    assert {*NAMES, "imagenet_train", "imagenet_val", "coco_2017_train", "lvis_v1_val"} <= registered
    kinds = {name: MetadataCatalog.get(name).evaluator_type for name in NAMES}
    assert set(kinds.values()) == {"coco", "lvis", "imagenet", "coco_caption", "retrieval", "corpus"}
    karpathy = {name: MetadataCatalog.get(name).evaluator_type for name in registered if "karpathy" in name}
    assert karpathy == {
        **{f"coco_2014_captions_karpathy_{split}": "coco_caption" for split in ("train", "val", "test")},
        **{f"coco_2014_retrieval_karpathy_{split}": "retrieval" for split in ("val", "test")},
        **{f"flickr30k_retrieval_karpathy_{split}": "retrieval" for split in ("val", "test")},
    }


def test_karpathys_splits_lie_where_the_documentation_says(tmp_path, monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    register_karpathy(str(tmp_path))
    for name, file in (
        ("coco_2014_captions_karpathy_train", "coco/annotations/dataset_coco.json"),
        ("flickr30k_retrieval_karpathy_test", "flickr30k/dataset_flickr30k.json"),
    ):
        message = message_of(load_dataset, name)
        assert str(tmp_path / file) in message and "datasets/README.md" in message
        image = {"filename": "a.jpg", "imgid": 7, "split": name.split("_")[-1], "sentences": []}
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(json.dumps({"images": [image]}))
        folder = "coco" if name.startswith("coco") else "flickr30k/flickr30k-images"
        assert load_dataset(name)[0]["file_name"] == str(tmp_path / folder / "a.jpg")


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_loads(tiny, name):
    records = load_dataset(f"tiny_{name}")
    expected = {"digits": (1297, 500), "digit_corpus": (400, 60), "digit_scenes": (40, 12)}
    family = next(family for family in expected if name.startswith(family))
    assert len(records) == expected[family]["test" in name]
    if "corpus" not in name:
        assert all(set(r) >= {"file_name", "image_id"} for r in records)
    if "caption" in name or "retrieval" in name:
        assert all(len(r["captions"]) == 5 for r in records)
    elif "corpus" in name:
        assert all(r["text"] for r in records)
    else:
        assert candidate_names(f"tiny_{name}") == DIGITS


def test_lvis_and_coco_forms_of_the_test_scenes_agree(tiny):
    coco, lvis = (load_dataset(f"tiny_digit_scenes_{kind}test") for kind in ("", "lvis_"))
    for a, b in zip(coco, lvis, strict=True):
        assert (a["file_name"], a["image_id"]) == (b["file_name"], b["image_id"])
        kept = [x for x in a["annotations"] if not x["iscrowd"]]
        assert [(x["category_id"], x["bbox"]) for x in kept] == [
            (x["category_id"], x["bbox"]) for x in b["annotations"]
        ]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_dataset_is_told_with_its_path_and_the_command(tmp_path, catalogs, name):
    register_digit_scenes(str(tmp_path / "nowhere"), prefix="no_")
    message = message_of(load_dataset, f"no_{name}")
    assert f"'no_{name}'" in message and str(tmp_path / "nowhere") in message
    assert f"python datasets/prepare_digit_scenes.py --output {tmp_path / 'nowhere'}" in message


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("annotations/instances_train.json", "digit_scenes_train"),
        ("annotations/lvis_test.json", "digit_scenes_lvis_test"),
        ("annotations/captions_test.json", "digit_scenes_captions_test"),
    ],
)
def test_annotations_cut_short_are_told_with_their_file(copy, file, name):
    whole = (copy / file).read_text()
    (copy / file).write_text(whole[: len(whole) // 2])
    message = message_of(load_dataset, f"copy_{name}")
    assert str(copy / file) in message and "cut short" in message and "prepare_digit_scenes.py" in message


def test_an_own_json_cut_short(own_coco, tmp_path, scenes_config):
    own_coco()
    text = (tmp_path / "own.json").read_text()
    (tmp_path / "own.json").write_text(text[:-5])
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    assert str(tmp_path / "own.json") in message_of(build_task_train_loader, scenes_config, "scenes")
    assert str(tmp_path / "own.json") in message_of(build_test_loader, scenes_config, "own")


@pytest.mark.parametrize("content", ["[]", '{"boxes": []}'])
def test_json_of_another_format(own_coco, tmp_path, content):
    own_coco()
    (tmp_path / "own.json").write_text(content)
    message = message_of(load_dataset, "own")
    assert str(tmp_path / "own.json") in message
    assert "cannot be used" in message or "is empty" in message


def test_a_missing_own_json(catalogs, tmp_path):
    register_coco_instances("own", {}, str(tmp_path / "none.json"), str(tmp_path))
    message = message_of(load_dataset, "own")
    assert str(tmp_path / "none.json") in message and "datasets/README.md" in message


def test_an_unknown_dataset_is_told_with_the_nearest():
    assert "did you mean 'digit_scenes_train'?" in message_of(load_dataset, "digit_scene_train")


def test_own_coco_data_is_trained_on_and_tested(own_coco, scenes_config):
    own_coco()
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    batch = next(iter(build_task_train_loader(scenes_config, "scenes")))
    assert batch[0]["candidates"] == DIGITS and len(batch) == 6
    assert sum(len(b) for b in build_test_loader(scenes_config, "own")) == 40


def test_categories_without_training_images_are_named(own_coco, tmp_path, scenes_config):
    def drop_two_and_nine(content):
        for annotation in content["annotations"]:
            if annotation["category_id"] in (3, 10):
                annotation["category_id"] = 1

    own_coco(drop_two_and_nine)
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    message = message_of(build_task_train_loader, scenes_config, "scenes")
    assert "two, nine" in message and " of own: " in message and str(tmp_path / "own.json") in message
    # Another dataset of the task may have them.
    scenes_config.TASKS.scenes.DATASETS = ["own", "tiny_digit_scenes_train"]
    build_task_train_loader(scenes_config, "scenes")


def test_a_category_that_is_seen_in_crowds_alone_has_no_training_images(own_coco, scenes_config):
    def only_crowds_of_two(content):
        for annotation in content["annotations"]:
            if annotation["category_id"] == 3:
                annotation["iscrowd"] = 1

    own_coco(only_crowds_of_two)
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    assert "two" in message_of(build_task_train_loader, scenes_config, "scenes")


def test_a_class_folder_without_images_is_named(copy, scenes_config):
    for path in (copy / "digits/train/six").iterdir():
        path.unlink()
    scenes_config.TASKS.digits.DATASETS = ["copy_digits_train"]
    assert "six" in message_of(build_task_train_loader, scenes_config, "digits")


def test_datasets_of_other_classes_cannot_be_joined(own_coco, scenes_config):
    own_coco(lambda content: content["categories"][4].update(name="quatre"))
    scenes_config.TASKS.scenes.DATASETS = ["tiny_digit_scenes_train", "own"]
    assert "different classes" in message_of(build_task_train_loader, scenes_config, "scenes")


def test_annotations_without_masks_need_masks_off(own_coco, scenes_config):
    own_coco(lambda content: content["annotations"][7].pop("segmentation"))
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    assert "polygon or RLE" in message_of(build_task_train_loader, scenes_config, "scenes")
    scenes_config.MODEL.MASK_ON = False
    batch = next(iter(build_task_train_loader(scenes_config, "scenes")))
    assert not batch[0]["instances"].has("gt_masks")


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        ("scenes", "tiny_digit_scenes_captions_train", '"annotations"'),
        ("digits", "tiny_digit_scenes_train", '"label"'),
        ("captions", "tiny_digit_scenes_train", '"captions"'),
        ("texts", "tiny_digit_scenes_captions_train", '"text"'),
    ],
)
def test_data_of_another_kind_of_task_is_refused(all_tasks_config, task, name, expected):
    all_tasks_config.TASKS[task].DATASETS = [name]
    message = message_of(build_task_train_loader, all_tasks_config, task)
    assert name in message and expected in message


def test_images_with_nothing_to_learn_are_left_out_if_asked(own_coco, scenes_config):
    own_coco(lambda content: content["images"].append({**content["images"][0], "id": 5000}))
    scenes_config.TASKS.scenes.DATASETS = ["own"]
    for filter_empty, expected in ((True, 40), (False, 41)):
        scenes_config.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        scenes_config.TASKS.scenes.IMS_PER_BATCH = expected
        batch = next(iter(build_task_train_loader(scenes_config, "scenes")))
        assert len({sample["image_id"] for sample in batch}) == expected


def test_image_folders(tree, tmp_path, catalogs):
    root = str(tree / "digits/test")
    register_image_folder("alphabetical", root)
    register_image_folder("some", root, ["two", "one"])
    register_image_folder("renamed", root, {"two": "zwei", "one": "eins"})
    (tmp_path / "names.txt").write_text("two dos, deux\none uno\n")
    register_image_folder("from_file", root, names_file=str(tmp_path / "names.txt"))

    records = load_dataset("alphabetical")
    assert candidate_names("alphabetical") == tuple(sorted(DIGITS)) and len(records) == 500
    assert [r["image_id"] for r in records] == list(range(500))
    assert all(r["file_name"].split("/")[-2] == sorted(DIGITS)[r["label"]] for r in records)
    for name, classes in (("some", ("two", "one")), ("renamed", ("zwei", "eins")), ("from_file", ("dos", "uno"))):
        records = load_dataset(name)
        assert candidate_names(name) == classes
        assert all(r["file_name"].split("/")[-2] == ("two", "one")[r["label"]] for r in records)


def test_a_missing_class_folder(tree, catalogs):
    register_image_folder("eleven", str(tree / "digits/test"), ["one", "eleven"])
    assert str(tree / "digits/test/eleven") in message_of(load_dataset, "eleven")
