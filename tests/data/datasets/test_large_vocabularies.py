"""ImageNet's and LVIS's class names as candidates, and LVIS's rare categories in training."""

import collections

import detectron2
import pytest
from detectron2.data import MetadataCatalog

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, load_dataset
from uniperceiver_v2.data.datasets.records import candidate_names
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY

from .. import miniatures
from ..loading.test_build import take

# Lines of ImageNet's list, all those whose first name is not unique among them.
SYNSETS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n02113186": "Cardigan, Cardigan Welsh corgi",
    "n02963159": "cardigan",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
    "n03773504": "missile",
    "n04008634": "projectile, missile",
}


# The miniature of LVIS has a few categories, and upstream takes all of LVIS's names from a file of its own.
fewer_categories = pytest.mark.skipif("detectron2_core" not in detectron2.__file__, reason="upstream knows 1,203 names")


@pytest.fixture
def root(tmp_path, monkeypatch):
    miniatures.register_only(tmp_path, monkeypatch)
    return tmp_path


def test_imagenets_names_are_distinct(root):
    miniatures.write_imagenet(root, SYNSETS)
    records = load_dataset("imagenet_val")
    assert candidate_names("imagenet_val") == (
        *("tench", "crane bird", "Cardigan Welsh corgi", "cardigan", "construction crane", "maillot", "tank suit"),
        *("missile", "projectile"),
    )
    folders = [record["file_name"].split("/")[-2] for record in records]
    assert folders == list(SYNSETS) and [record["label"] for record in records] == list(range(9))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"a": "boat", "b": "Boat"}, ("classes a and b are both called 'Boat'", "add another name")),
        ({"a": "boat", "b": "boat, ship", "c": "boat, ship"}, ("classes a and c are both called 'boat'",)),
        ({"a": "boat", "b": ""}, ("the class b has no name",)),
    ],
)
def test_classes_that_cannot_be_told_apart_are_named(root, lines, words):
    path = miniatures.write_imagenet(root, lines)
    with pytest.raises(UserError) as caught:
        load_dataset("imagenet_val")
    assert str(path) in str(caught.value) and all(word in str(caught.value) for word in words)


def test_a_list_without_classes_is_named(root):
    path = miniatures.write_imagenet(root, SYNSETS)
    path.write_text("\n")
    with pytest.raises(UserError, match="names no class") as caught:
        load_dataset("imagenet_val")
    assert str(path) in str(caught.value)


@fewer_categories
def test_lvis_names_have_no_underscores_and_its_evaluator_sees_the_files_own(root):
    miniatures.write_lvis(root, [7, 9])
    load_dataset("lvis_v1_train")
    assert candidate_names("lvis_v1_train") == ("aerosol can", "bow (decorative ribbons)", "zebra")
    assert MetadataCatalog.get("lvis_v1_train").thing_classes == list(miniatures.LVIS_NAMES)


@fewer_categories
def test_images_of_rare_categories_are_repeated(root, config):
    ids = list(range(101, 121))
    miniatures.write_lvis(root, ids, counts=(20, 20, 1))  # the zebra is in 1 image of 20
    task = {"KIND": "detection", "DATASETS": ["lvis_v1_train"], "IMS_PER_BATCH": 1, "REPEAT_THRESHOLD": 0.8}
    loader = build_task_train_loader(config(lvis=task), "lvis")
    # sqrt(0.8 / 0.05) = 4 for image 101, and 1 for the 19 others
    seen = collections.Counter(sample["image_id"] for batch in take(loader, 2 * 23) for sample in batch)
    assert seen == {**dict.fromkeys(ids, 2), 101: 8}


def test_the_configuration_of_lvis():
    cfg = load_config(str(REPOSITORY / "configs/lvis/uniperceiver_v2_r50.yaml"))
    assert cfg.TASKS.lvis.DETECTIONS_PER_IMAGE == 300 and cfg.TASKS.lvis.REPEAT_THRESHOLD == 0.001
    assert list(cfg.TASKS.NAMES) == ["lvis"] and cfg.DATASETS.TEST == ("lvis_v1_val",)
