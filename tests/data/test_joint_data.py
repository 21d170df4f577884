"""The data of the joint training, as miniatures in the real formats: a batch of every task and of every test."""

import pytest

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader, load_dataset
from uniperceiver_v2.files import REPOSITORY

from . import miniatures
from .joint_miniatures import write_all, write_coco_2017


def configured(name: str):
    """A configuration of ``configs/joint`` with small batches and images."""
    options = ["MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH", str(REPOSITORY / "configs/digit_scenes/text_encoder")]
    options += ["INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", "DATALOADER.NUM_WORKERS", "0"]
    options += ["TEST.IMS_PER_BATCH", "2", "SEED", "3"]
    path = str(REPOSITORY / "configs/joint" / f"{name}.yaml")
    for task in load_config(path).TASKS.NAMES:
        options += [f"TASKS.{task}.IMS_PER_BATCH", "2"]
    return load_config(path, options)


@pytest.fixture
def joint(tmp_path, monkeypatch):
    """The configuration of the ResNet-50 model on miniatures of all of its datasets."""
    miniatures.register_only(tmp_path, monkeypatch)
    write_all(tmp_path)
    return configured("uniperceiver_v2_r50")


def image_ids(cfg, task: str) -> list[int]:
    """Those of an epoch, after a first batch was drawn."""
    loader = build_task_train_loader(cfg, task)
    assert len(next(iter(loader))) == 2
    return [record["image_id"] for record in loader._batches._records]


def test_coco_2017_alone_is_enough_for_detection_and_captions(tmp_path, monkeypatch):
    miniatures.register_only(tmp_path, monkeypatch)
    write_coco_2017(tmp_path)
    cfg = configured("uniperceiver_v2_r50_coco")
    assert cfg.TASKS.NAMES == ["coco", "coco_captions"]
    for task in cfg.TASKS.NAMES:
        assert image_ids(cfg, task) == [1, 2, 3, 21, 22]
    tests = {
        name: [x["image_id"] for batch in build_test_loader(cfg, name) for x in batch] for name in cfg.DATASETS.TEST
    }
    assert tests == {"coco_2017_val": [4, 5], "coco_2017_captions_val": [4, 5]}
    assert [r["captions"] for r in load_dataset("coco_2017_captions_val")] == [
        [f"A red boat number {n}." for n in range(5)]
    ] * 2


def test_karpathys_test_images_stay_out_of_coco_2017_where_his_file_is(tmp_path, monkeypatch):
    miniatures.register_only(tmp_path, monkeypatch)
    write_coco_2017(tmp_path)
    miniatures.write_karpathy_coco(tmp_path, {"train": [1, 2, 3], "val": [21], "test": [22, 4]})
    cfg = configured("uniperceiver_v2_r50_coco")
    for task in cfg.TASKS.NAMES:
        assert image_ids(cfg, task) == [1, 2, 3]


def test_every_task_has_batches(joint):
    loaders = {name: build_task_train_loader(joint, name) for name in joint.TASKS.NAMES}
    batches = {name: next(iter(loader)) for name, loader in loaders.items()}
    assert all(len(batch) == 2 for batch in batches.values())
    kept = {name: len(loader._batches._records) for name, loader in loaders.items()}
    assert kept == {
        "coco": 3,  # without 21 and 22, which are Karpathy's
        "imagenet": 6,
        **dict.fromkeys(("coco_captions", "coco_pairs"), 4),  # without 4, which coco_2017_val has
        **dict.fromkeys(("genome_captions", "genome_pairs"), 2),  # without 22 and without Flickr30k's 9
        **dict.fromkeys(("web_captions", "web_pairs"), 4 * 7),
        "texts": 18,
    }
    assert batches["imagenet"][0]["candidates"] == ("crane bird", "tench")


def test_every_test_set_has_batches(joint):
    sizes = {name: sum(map(len, build_test_loader(joint, name))) for name in joint.DATASETS.TEST}
    assert sizes == {
        "coco_2017_val": 2,
        "imagenet_val": 6,
        "coco_2014_captions_karpathy_test": 2,
        "coco_2014_retrieval_karpathy_test": 2,
        "flickr30k_retrieval_karpathy_test": 2,
    }
