"""Photographs of test sets stay out of training: of every kind, of every dataset that shares them, by generated ids."""

import detectron2
import numpy as np
import pytest

from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.data import build_task_train_loader, training_images_of_captions
from uniperceiver_v2.data.datasets import held_out, refer
from uniperceiver_v2.data.datasets.held_out import STANDARD, photos_of
from uniperceiver_v2.errors import UserError

from .. import miniatures
from ..loading.test_build import take

PHRASES = {"KIND": "grounding", "IMS_PER_BATCH": 1}
PAIRS = {"KIND": "retrieval", "IMS_PER_BATCH": 1}
TASKS = {
    "boxes": {"KIND": "detection", "DATASETS": ["coco_2017_train"], "IMS_PER_BATCH": 1},
    "lvis": {"KIND": "detection", "DATASETS": ["lvis_v1_train"], "IMS_PER_BATCH": 1},
    "captions": {"KIND": "captioning", "DATASETS": ["coco_2014_captions_karpathy_train"], "IMS_PER_BATCH": 1},
    "pairs": {**PAIRS, "DATASETS": ["coco_2014_captions_karpathy_train", "visual_genome_captions_train"]},
    "genome": {**PHRASES, "DATASETS": ["visual_genome_regions_train"]},
    "refer": {**PHRASES, "DATASETS": ["refcoco_unc_train"]},
}


class World:
    """60 generated photographs, as the public datasets share theirs out. Those to hold out are by dataset."""

    def __init__(self, root, seed: int):
        draw = np.random.default_rng(seed)
        ids = draw.choice(580_000, 60, replace=False).tolist()
        train14, val14 = ids[:36], ids[36:]
        self.val17 = val14[:4]
        self.held_out = {
            "coco_2014_captions_karpathy_val": val14[4:8],
            "coco_2014_captions_karpathy_test": val14[8:16],
            "refcoco_unc_val": train14[:2],
            "refcoco_unc_testA": train14[2:4],
            "refcoco_unc_testB": train14[4:5],
            "refcocog_umd_val": train14[8:9],
            "refcocog_umd_test": train14[5:8],
        }
        self.flickr = {"val": [3_000_001, 3_000_002], "test": [3_000_003], "train": [3_000_004]}
        miniatures.write_coco(root, [i for i in ids if i not in self.val17])
        miniatures.write_coco(root, self.val17, "val2017")
        miniatures.write_lvis(root, ids)
        miniatures.write_lvis(root, train14[30:33], "val")
        restval = [*self.val17, *val14[16:]]
        miniatures.write_karpathy_coco(
            root, {"train": train14, "restval": restval, "val": val14[4:8], "test": val14[8:16]}
        )
        miniatures.write_flickr30k(root, self.flickr)
        splits = {"train": train14[5:20], "val": train14[:2], "testA": train14[2:4], "testB": train14[4:5]}
        miniatures.write_refer(root, splits)
        miniatures.write_refer(
            root, {"train": train14[9:12], "val": train14[8:9], "test": train14[5:8]}, "refcocog", "umd"
        )
        genome = [*train14[:10], *val14[:10]]  # COCO's, then Flickr30k's, then those of neither
        photographs = [(100 + n, i, miniatures.photo_of(i)) for n, i in enumerate(genome)]
        photographs += [(200 + n, None, f) for n, f in enumerate([3_000_001, 3_000_003, 3_000_004])]
        miniatures.write_visual_genome(root, [*photographs, (300, None, None)])
        self.ids = ids
        self.lvis_val = train14[30:33]

    @property
    def photos(self) -> set[str]:
        flickr = [*self.flickr["val"], *self.flickr["test"]]
        return {f"coco:{i}" for its in self.held_out.values() for i in its} | {f"flickr:{i}" for i in flickr}


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    miniatures.register_only(tmp_path, monkeypatch)
    held_out._warn_of_missing.cache_clear()
    return World(tmp_path, seed=0)


def trained_on(cfg, task: str) -> list[dict]:
    """The records of the samples of an epoch, with all that the records know of their photographs."""
    loader = build_task_train_loader(cfg, task)
    records = loader._batches._records
    samples = [sample for batch in take(loader, len(records)) for sample in batch]
    of_file = {record["file_name"]: record for record in records}
    assert {sample["file_name"] for sample in samples} == set(of_file)
    return list(of_file.values())


@pytest.mark.parametrize("task", TASKS)
def test_no_task_sees_a_photograph_of_a_test_set(world, config, task):
    if task == "lvis" and "detectron2_core" not in detectron2.__file__:
        pytest.skip("upstream knows 1,203 names, of which the miniature has a few")
    cfg = config(**{task: TASKS[task]})
    seen = frozenset().union(*map(photos_of, trained_on(cfg, task)))
    assert seen and not seen & world.photos
    # Without the rule, every one of these tasks would see some.
    cfg.DATASETS.HELD_OUT = []
    assert frozenset().union(*map(photos_of, trained_on(cfg, task))) & world.photos


def test_all_other_images_are_trained_on_and_the_log_counts_the_rest(world, config, logged):
    records = trained_on(config(boxes=TASKS["boxes"]), "boxes")
    held_out = {i for its in world.held_out.values() for i in its}
    assert {record["image_id"] for record in records} == set(world.ids) - held_out - set(world.val17)
    (message,) = [m for m in logged() if "are left out, as they are of test sets" in m]
    assert message.startswith("task boxes: 21 of 56 images are left out")
    for name, ids in world.held_out.items():
        assert f"{name} {len(ids)}" in message
    (warning,) = [m for m in logged() if "training may use their images" in m]
    missing = {"refcoco+_unc_val", "refcoco+_unc_testA", "refcoco+_unc_testB"}
    assert {*warning.split(": ")[1].split(", ")} == {
        *missing,
        *("flickr30k_entities_val", "flickr30k_entities_test"),
    }


def test_a_runs_own_test_sets_are_held_out_as_well(world, config):
    cfg = config(captions=TASKS["captions"], boxes=TASKS["boxes"])
    assert {f"coco:{i}" for i in world.val17} <= frozenset().union(*map(photos_of, trained_on(cfg, "captions")))
    cfg.DATASETS.TEST = ("coco_2017_val", "lvis_v1_val")
    assert not {r["image_id"] for r in trained_on(cfg, "captions")} & {*world.val17, *world.lvis_val}
    assert not {r["image_id"] for r in trained_on(cfg, "boxes")} & {*world.val17, *world.lvis_val}
    baselines, _ = training_images_of_captions(cfg)
    assert not {r["image_id"] for r in baselines} & {*world.val17, *world.lvis_val}


@pytest.mark.parametrize(
    ("file_name", "photo"),
    [
        ("coco/val2014/COCO_val2014_000000391895.jpg", "coco:391895"),
        ("/data/train2017/000000391895.jpg", "coco:391895"),
        ("flickr30k/flickr30k-images/1000092795.jpg", "flickr:1000092795"),
        ("digit_scenes/images/train/000000000001.png", None),
        ("mine/000000391895.jpg", None),
        ("train2017/IMG_0001.jpg", None),
    ],
)
def test_a_files_name_tells_whose_photograph_it_is(file_name, photo):
    assert photos_of({"file_name": file_name}) == ({photo} if photo else set())


def test_data_without_known_photographs_asks_for_no_test_set(scenes_config, logged):
    take(build_task_train_loader(scenes_config, "scenes"), 1)
    assert not [m for m in logged() if "test sets" in m]


def test_a_damaged_test_set_ends_the_run_and_an_unknown_one_its_check(world, config, tmp_path):
    cfg = config(boxes=TASKS["boxes"])
    (tmp_path / "refer/refcoco/refs(unc).p").write_bytes(b"no pickle")
    with pytest.raises(UserError, match=r"refs\(unc\)\.p cannot be read as a pickle"):
        build_task_train_loader(cfg, "boxes")
    cfg.MODEL.META_ARCHITECTURE = "UniPerceiverV2"
    cfg.DATASETS.HELD_OUT = ["refcoco_unc_vall"]
    with pytest.raises(UserError, match=r"DATASETS\.HELD_OUT: unknown dataset .*'refcoco_unc_val'"):
        check_config(cfg, training=True)


def test_where_every_image_is_a_tests_nothing_is_left(world, config):
    cfg = config(boxes={**TASKS["boxes"], "DATASETS": ["coco_2017_val"]})
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(UserError, match="nothing is left to train on"):
        build_task_train_loader(cfg, "boxes")


def test_the_standard_test_sets_are_registered_and_of_no_training_split():
    from detectron2.data import DatasetCatalog

    assert set(STANDARD) <= set(DatasetCatalog.list()) and not any("train" in name for name in STANDARD)


def test_a_pickle_of_several_held_out_splits_is_read_once(world, monkeypatch):
    read = []
    load = refer.load_plain_pickle
    monkeypatch.setattr(refer, "load_plain_pickle", lambda path: read.append(path) or load(path))
    for split in ("val", "testA", "testB"):
        name = f"refcoco_unc_{split}"
        assert held_out.photos_in(name) == {f"coco:{i}" for i in world.held_out[name]}
    assert len(read) == 1
