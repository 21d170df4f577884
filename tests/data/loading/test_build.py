import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from uniperceiver_v2.data import (
    build_task_train_loader,
    build_test_loader,
    register_captions,
    register_digit_scenes,
    register_image_folder,
    register_text_lines,
)
from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.data.loading.test import MAX_WAITING, of_one_size
from uniperceiver_v2.data.order import CountFrom
from uniperceiver_v2.errors import UserError

from .. import miniatures
from ..conftest import SCENES


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, Instances):
        assert a.image_size == b.image_size and a.get_fields().keys() == b.get_fields().keys()
        for name, field in a.get_fields().items():
            assert torch.equal(getattr(field, "tensor", field), getattr(b.get(name), "tensor", b.get(name)))
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_objects_of_another_image_are_pasted_the_same_with_any_number_of_workers(all_tasks_config):
    plain = take(build_task_train_loader(all_tasks_config, "scenes"), 4)
    all_tasks_config.TASKS.scenes.update({"COPY_PASTE": 0.7, "JITTER_SIZE": 96})
    expected = take(build_task_train_loader(all_tasks_config, "scenes"), 4)
    counts = [[sum(len(x["instances"]) for x in batch) for batch in batches] for batches in (plain, expected)]
    assert sum(counts[1]) > sum(counts[0])
    all_tasks_config.DATALOADER.NUM_WORKERS = 2
    assert_same(take(build_task_train_loader(all_tasks_config, "scenes"), 4), expected)
    all_tasks_config.MODEL.MASK_ON = False
    with pytest.raises(UserError, match=r"TASKS\.scenes\.COPY_PASTE: .*MASK_ON"):
        build_task_train_loader(all_tasks_config, "scenes")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("task", ["scenes", "digits", "captions", "retrieval", "texts"])
def test_any_number_of_workers_gives_the_same_batches(all_tasks_config, workers, task):
    expected = take(build_task_train_loader(all_tasks_config, task), 9)
    all_tasks_config.DATALOADER.NUM_WORKERS = workers
    assert_same(take(build_task_train_loader(all_tasks_config, task), 9), expected)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["captions_test", "retrieval_test"])
def test_any_number_of_workers_gives_the_same_test_batches(all_tasks_config, workers, name):
    expected = list(build_test_loader(all_tasks_config, f"tiny_digit_scenes_{name}"))
    all_tasks_config.DATALOADER.NUM_WORKERS = workers
    assert_same(list(build_test_loader(all_tasks_config, f"tiny_digit_scenes_{name}")), expected)


@pytest.mark.parametrize(("task", "workers"), [("scenes", 0), ("scenes", 2), ("captions", 2), ("texts", 2)])
def test_a_run_goes_on_where_it_was(all_tasks_config, task, workers):
    whole = take(build_task_train_loader(all_tasks_config, task), 12)  # of 40 images: into the next epoch
    all_tasks_config.DATALOADER.NUM_WORKERS = workers
    assert_same(take(build_task_train_loader(all_tasks_config, task, numbers=CountFrom(7)), 5), whole[7:])


@pytest.mark.parametrize("task", ["scenes", "retrieval"])
def test_the_ranks_shares_are_the_whole_batch(all_tasks_config, monkeypatch, task):
    whole = take(build_task_train_loader(all_tasks_config, task), 4)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares.append(take(build_task_train_loader(all_tasks_config, task), 4))
    assert_same([a + b + c for a, b, c in zip(*shares, strict=True)], whole)
    all_tasks_config.TASKS[task].IMS_PER_BATCH = 7
    with pytest.raises(UserError, match=rf"TASKS\.{task}\.IMS_PER_BATCH: 3 processes"):
        build_task_train_loader(all_tasks_config, task)


def test_seeds_and_tasks_give_other_batches(scenes_config, config):
    cfg = config(scenes=SCENES, more_scenes=SCENES)
    first, other_task = (take(build_task_train_loader(cfg, task), 2) for task in cfg.TASKS.NAMES)
    cfg.SEED = 6
    other_seed = take(build_task_train_loader(cfg, "scenes"), 2)
    ids = [[s["image_id"] for batch in batches for s in batch] for batches in (first, other_task, other_seed)]
    assert ids[0] != ids[1] and ids[0] != ids[2]


def test_an_epoch_shows_every_image_once_and_the_next_differs(scenes_config):
    scenes_config.TASKS.scenes.IMS_PER_BATCH = 8
    batches = take(build_task_train_loader(scenes_config, "scenes"), 10)
    ids = [s["image_id"] for batch in batches for s in batch]
    assert sorted(ids[:40]) == sorted(ids[40:]) == sorted(set(ids))
    assert ids[:40] != ids[40:]
    by_id = {s["image_id"]: s["image"].shape for batch in batches[:5] for s in batch}
    again = {s["image_id"]: s["image"].shape for batch in batches[5:] for s in batch}
    assert by_id != again  # augmented anew


def test_loading_here_leaves_numpys_random_numbers_alone(scenes_config):
    np.random.seed(3)
    expected = np.random.uniform(size=2)
    np.random.seed(3)
    loader = iter(build_task_train_loader(scenes_config, "scenes"))
    np.testing.assert_array_equal([np.random.uniform(), next(loader) and np.random.uniform()], expected)


@pytest.fixture
def damaged(tree, tmp_path, catalogs, config):
    """damage(number of images) -> a configuration of a task on 40 scenes, so many of which are truncated."""
    shutil.copytree(tree / "images", tmp_path / "scenes/images")
    shutil.copytree(tree / "annotations", tmp_path / "scenes/annotations")
    register_digit_scenes(str(tmp_path / "scenes"), prefix="damaged_")

    def damage(count: int):
        for path in sorted((tmp_path / "scenes/images/train").iterdir())[:count]:
            path.write_bytes(path.read_bytes()[:200])
        return config(scenes={**SCENES, "DATASETS": ["damaged_digit_scenes_train"]})

    return damage


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_replaced_counted_and_named_once(damaged, caplog, workers):
    cfg = damaged(1)
    cfg.DATALOADER.MAX_CORRUPT_SHARE, cfg.DATALOADER.NUM_WORKERS = 0.1, workers
    loader = build_task_train_loader(cfg, "scenes")
    with caplog.at_level(logging.WARNING, logger="uniperceiver_v2"):
        logging.getLogger("uniperceiver_v2").propagate = True
        batches = take(loader, 20)  # three epochs of 40 in batches of 6
    assert all(len(batch) == 6 for batch in batches)
    assert all(not s["file_name"].endswith("000000000001.png") for batch in batches for s in batch)
    assert loader.num_unreadable >= 3
    warnings = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(warnings) == 1 and "000000000001.png" in warnings[0] and "scenes" in warnings[0]
    cfg.DATALOADER.NUM_WORKERS = 1
    assert_same(take(build_task_train_loader(cfg, "scenes"), 20), batches)  # the replacement is no accident


def test_training_ends_past_the_allowed_share(damaged):
    cfg = damaged(4)
    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.05
    seen = 0
    with pytest.raises(UserError) as caught:
        for batch in build_task_train_loader(cfg, "scenes"):
            seen += len(batch)
            assert seen < 200
    assert seen > 80  # fewer than 100 images say nothing
    message = str(caught.value)
    assert "MAX_CORRUPT_SHARE (0.05)" in message and "task scenes" in message and "0000000" in message

    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.2
    assert len(take(build_task_train_loader(cfg, "scenes"), 50)) == 50


def test_many_unreadable_images_in_one_large_batch_are_no_end(damaged):
    cfg = damaged(8)
    cfg.DATALOADER.MAX_CORRUPT_SHARE, cfg.TASKS.scenes.IMS_PER_BATCH = 0.4, 200
    loader = build_task_train_loader(cfg, "scenes")
    assert [len(batch) for batch in take(loader, 2)] == [200, 200]
    assert loader.num_unreadable > 60


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_readable_image_ends_at_once(damaged, workers):
    cfg = damaged(40)
    cfg.DATALOADER.MAX_CORRUPT_SHARE, cfg.DATALOADER.NUM_WORKERS = 1.0, workers
    with pytest.raises(UserError, match=r"20 of 20 images cannot be read.*000000"):
        take(build_task_train_loader(cfg, "scenes"), 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["", "captions_"])
def test_a_corrupt_test_image_ends_evaluation_by_name(damaged, tmp_path, workers, kind):
    cfg = damaged(0)
    cfg.DATALOADER.NUM_WORKERS = workers
    (tmp_path / "scenes/images/test/000001000003.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        list(build_test_loader(cfg, f"damaged_digit_scenes_{kind}test"))
    assert str(caught.value).startswith("an image to be evaluated cannot be read: ")
    assert "000001000003.png" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["tiny_digit_scenes_test", "tiny_digit_scenes_lvis_test"])
def test_detection_is_tested_on_every_scene_once(scenes_config, name, workers):
    scenes_config.DATALOADER.NUM_WORKERS = workers
    batches = list(build_test_loader(scenes_config, name))
    assert [len(batch) for batch in batches] == [6, 6]
    samples = [sample for batch in batches for sample in batch]
    assert [s["image_id"] for s in samples] == [1_000_001 + i for i in range(12)]
    assert all(s["task"] == "scenes" and "instances" not in s for s in samples)
    assert all(s["image"].shape == (3, 96, 96) and len(s["candidates"]) == 10 for s in samples)


def test_the_task_that_evaluates_a_dataset_gives_its_size_and_name(scenes_config, config, tmp_path, catalogs):
    from ..conftest import DIGITS

    samples = [s for batch in build_test_loader(scenes_config, "tiny_digits_test") for s in batch]
    assert len(samples) == 500 and all(s["image"].shape == (3, 32, 32) for s in samples)
    assert all(s["task"] == "digits" for s in samples)
    assert [s["candidates"][s["label"]] for s in samples] == [s["file_name"].split("/")[-2] for s in samples]

    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (50, 40)).save(tmp_path / split / "cat/a.jpg")
        register_image_folder(f"pets_{split}", str(tmp_path / split))
    pets = {**DIGITS, "DATASETS": ["pets_train"], "IMAGE_SIZE": 48}
    with pytest.raises(UserError, match=r"tasks digits, pets could all evaluate dataset 'pets_val'.*TASKS.digits"):
        build_test_loader(config(digits=DIGITS, pets=pets), "pets_val")
    cfg = config(digits={**DIGITS, "EVALUATES": ["tiny_digits_test"]}, pets={**pets, "EVALUATES": ["pets_val"]})
    sample = next(iter(build_test_loader(cfg, "pets_val")))[0]
    assert sample["image"].shape == (3, 48, 48) and sample["task"] == "pets"
    assert next(iter(build_test_loader(cfg, "tiny_digits_test")))[0]["image"].shape == (3, 32, 32)

    cfg.TASKS.NAMES = ["digits"]  # an evaluating task need not be trained
    assert next(iter(build_test_loader(cfg, "pets_val")))[0]["image"].shape == (3, 48, 48)
    cfg.TASKS.digits.EVALUATES = ["pets_val"]
    with pytest.raises(UserError, match="EVALUATES of one of them only"):
        build_test_loader(cfg, "pets_val")
    cfg = config(digits=DIGITS, scenes={**SCENES, "EVALUATES": ["pets_val"]})
    with pytest.raises(UserError, match=r"TASKS\.scenes\.EVALUATES: 'pets_val' is a dataset of classification"):
        build_test_loader(cfg, "pets_val")


def test_without_a_task_of_its_kind_a_dataset_is_evaluated_by_the_kind_itself(config, tiny):
    sample = next(iter(build_test_loader(config(scenes=SCENES), "tiny_digits_test")))[0]
    assert sample["task"] == "classification" and sample["image"].shape == (3, 224, 224)


def test_batches_of_evaluation_hold_images_of_one_size():
    sizes = [(8, 8), (8, 9), (8, 8), (9, 9), (8, 8), (8, 9), (8, 8)]
    samples = [{"image": torch.zeros(3, *size), "image_id": index} for index, size in enumerate(sizes)]
    batches = list(of_one_size([samples[:3], samples[3:6], samples[6:]], 2))
    assert [[s["image_id"] for s in batch] for batch in batches] == [[0, 2], [1, 5], [4, 6], [3]]
    texts = [{"text_id": index} for index in range(5)]
    assert list(of_one_size([texts[:2], texts[2:4], texts[4:]], 2)) == [texts[:2], texts[2:4], texts[4:]]


def test_few_samples_wait_for_others_of_their_size():
    def stream():
        for index in range(400):
            stream.made = index + 1
            yield [{"image": torch.zeros(3, 1, 1 + index % 200), "image_id": index}]

    seen = 0
    for batch in of_one_size(stream(), 4):
        assert len({s["image"].shape for s in batch}) == 1
        assert stream.made - seen <= 4 * MAX_WAITING + 1
        seen += len(batch)
    assert seen == 400


def test_captioning_and_retrieval_are_tested_on_every_image_once(all_tasks_config):
    for name, task in (("captions", "captions"), ("retrieval", "retrieval")):
        loader = build_test_loader(all_tasks_config, f"tiny_digit_scenes_{name}_test")
        batches = list(loader)
        assert len(loader) == len(batches) == 2
        samples = [sample for batch in batches for sample in batch]
        assert [s["image_id"] for s in samples] == [1_000_001 + i for i in range(12)]
        assert all(s["task"] == task and len(s["captions"]) == 5 for s in samples)
        assert all(s["image"].shape == (3, 96, 96) and "candidates" not in s for s in samples)
        assert all(("caption_token_ids" in s) == (task == "retrieval") for s in samples)


def test_language_modelling_is_tested_on_every_token_once(all_tasks_config, tokenizer, tmp_path, catalogs):
    texts = ["a red seven is to the left of two blue threes", "nine", "vier über null"]
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    register_text_lines("own", str(tmp_path / "corpus.txt"))
    batches = list(build_test_loader(all_tasks_config, "own"))
    assert max(len(batch) for batch in batches) == 6
    samples = [sample for batch in batches for sample in batch]
    assert all(s["task"] == "texts" for s in samples)
    for text_id, text in enumerate(texts):
        labels = torch.stack([s["labels"] for s in samples if s["text_id"] == text_id])
        assert ((labels != -100).sum(0)[1:-1] == 1).all()
        assert torch.equal(labels.max(0).values[1:-1], encode(tokenizer, text)[1:-1])


def test_images_without_a_caption_and_long_captions_in_a_test_set(all_tasks_config, tree, tmp_path, catalogs):
    content = json.loads((tree / "annotations/captions_test.json").read_text())
    for annotation in content["annotations"]:
        annotation["caption"] = {1_000_002: " ", 1_000_003: "sieben über " * 40}.get(
            annotation["image_id"], annotation["caption"]
        )
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_captions("own", str(tmp_path / "own.json"), str(tree / "images/test"), evaluator_type="retrieval")
    samples = {s["image_id"]: s for batch in build_test_loader(all_tasks_config, "own") for s in batch}
    assert len(samples) == 11 and 1_000_002 not in samples
    assert [len(token_ids) for token_ids in samples[1_000_003]["caption_token_ids"]] == [64] * 5


def test_ranks_share_a_test_set(scenes_config, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        batches = list(build_test_loader(scenes_config, "tiny_digit_scenes_test"))
        assert [len(batch) for batch in batches] == [3, 3]
        seen += [s["image_id"] for batch in batches for s in batch]
    assert sorted(seen) == [1_000_001 + i for i in range(12)]


def test_what_cannot_be_evaluated_is_refused(scenes_config, catalogs):
    MetadataCatalog.get("odd").set(evaluator_type="smell", thing_classes=["a"])
    from detectron2.data import DatasetCatalog

    DatasetCatalog.register("odd", lambda: [{"file_name": "a.png", "image_id": 0}])
    with pytest.raises(UserError, match="'smell'"):
        build_test_loader(scenes_config, "odd")


def test_images_that_are_missing_are_an_error_with_the_command(tmp_path, monkeypatch, config):
    miniatures.register_only(tmp_path, monkeypatch)
    miniatures.write_coco(tmp_path, [1, 2])
    (tmp_path / "coco/train2017/000000000002.jpg").unlink()
    task = {"KIND": "detection", "DATASETS": ["coco_2017_train"], "IMS_PER_BATCH": 2}
    cfg = config(coco=task)
    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.0
    for loader in (build_task_train_loader(cfg, "coco"), build_test_loader(cfg, "coco_2017_train")):
        with pytest.raises(UserError) as caught:
            for _ in zip(range(60), loader):
                pass
        assert str(tmp_path / "coco/train2017/000000000002.jpg") in str(caught.value)
        assert "python datasets/check.py coco_2017_train" in str(caught.value)
        assert "python datasets/prepare/coco.py" in str(caught.value)


def test_batches_by_shape_are_made_where_images_keep_their_shapes(all_tasks_config):
    def drawn(task: str) -> list:
        return [
            sample["image_id"] for batch in take(build_task_train_loader(all_tasks_config, task), 4) for sample in batch
        ]

    before = {task: drawn(task) for task in ("scenes", "digits")}
    all_tasks_config.DATALOADER.BATCHES_BY_SHAPE = 4
    assert drawn("digits") == before["digits"], "squares have one shape"
    assert sorted(drawn("scenes")) == sorted(before["scenes"]) and drawn("scenes") != before["scenes"]
