import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MapDataset,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    trivial_batch_collator,
    worker_init_reset_seed,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import IterableDataset, SequentialSampler


def records(*categories_of_images):
    """One record for each image. A negative category stands for a crowd."""
    return [
        {
            "image_id": i,
            "width": 10 + i % 2 * 20,
            "height": 20,
            "annotations": [{"category_id": abs(c), "iscrowd": int(c < 0)} for c in categories],
        }
        for i, categories in enumerate(categories_of_images)
    ]


@pytest.fixture
def register(name):
    """Registers lists of records under names that only this test uses. Returns the names."""
    names = []

    def register(*lists, classes=None):
        for content in lists:
            names.append(f"{name}/{len(names)}")
            DatasetCatalog.register(names[-1], lambda content=content: content)
            if classes is not None:
                MetadataCatalog.get(names[-1]).thing_classes = classes[len(names) - 1]
        return names

    yield register
    for registered in names:
        DatasetCatalog.remove(registered)
        MetadataCatalog.pop(registered, None)


def ids(elements):
    return [element["image_id"] for element in elements]


def test_filter_crowds():
    assert ids(filter_images_with_only_crowd_annotations(records([1, -1], [], [-1], [2]))) == [0, 3]


def test_datasets_are_joined(register):
    names = register(records([1], [], [-1]), records([2], [1]))
    assert ids(get_detection_dataset_dicts(names)) == [0, 0, 1]
    assert ids(get_detection_dataset_dicts(names, filter_empty=False)) == [0, 1, 2, 0, 1]
    assert ids(get_detection_dataset_dicts(names[1])) == [0, 1]


def test_datasets_must_agree_on_classes(register):
    names = register(records([1]), records([1]), classes=[["a", "b"], ["b", "a"]])
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts(names)
    assert len(get_detection_dataset_dicts(names, check_consistency=False)) == 2


def test_classes_out_of_range(register):
    names = register(records([2]), classes=[["a", "b"]])
    with pytest.raises(AssertionError, match="category_id=2"):
        get_detection_dataset_dicts(names)


def test_empty_and_unknown_datasets(register):
    names = register([], records([-1]))
    with pytest.raises(AssertionError, match="is empty"):
        get_detection_dataset_dicts(names[0])
    with pytest.raises(AssertionError, match="No valid data"):
        get_detection_dataset_dicts(names[1])
    with pytest.raises(KeyError, match="no_such_dataset"):
        get_detection_dataset_dicts("no_such_dataset")
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])


def test_histogram(caplog):
    with caplog.at_level("INFO"):
        print_instances_class_histogram(records([0, 0, 2], [2, -1]), ["cat", "dog", "a very long name indeed"])
    (table,) = [record.getMessage() for record in caplog.records]
    cells = [cell.strip() for line in table.splitlines() for cell in line.split("|")]
    assert "a very long.." in cells
    for category, count in (("cat", "2"), ("dog", "0"), ("a very long..", "2"), ("total", "4")):
        assert cells[cells.index(category) + 1] == count


def test_train_loader_is_endless_and_covers_everything():
    loader = build_detection_train_loader(
        records(*[[1]] * 6),
        mapper=lambda record: record["image_id"] * 10,
        sampler=TrainingSampler(6, seed=0),
        total_batch_size=2,
        aspect_ratio_grouping=False,
    )
    batches = list(itertools.islice(loader, 6))
    assert all(len(batch) == 2 for batch in batches)
    assert sorted(itertools.chain(*batches[:3])) == sorted(itertools.chain(*batches[3:])) == [0, 10, 20, 30, 40, 50]


def test_workers_do_not_change_the_batches():
    batches = {}
    for num_workers in (0, 2):
        loader = build_detection_train_loader(
            records(*[[1]] * 6),
            mapper=lambda record: record["image_id"],
            sampler=TrainingSampler(6, seed=0),
            total_batch_size=2,
            aspect_ratio_grouping=False,
            num_workers=num_workers,
        )
        batches[num_workers] = list(itertools.islice(loader, 6))
    assert batches[0] == batches[2]


def test_train_loader_groups_by_aspect_ratio():
    loader = build_detection_train_loader(records(*[[1]] * 8), mapper=None, total_batch_size=2)
    batches = list(itertools.islice(loader, 20))
    assert all(len({record["width"] > record["height"] for record in batch}) == 1 for batch in batches)
    assert {record["image_id"] for batch in batches for record in batch} == set(range(8))


def test_train_loader_collates():
    for grouping in (True, False):
        loader = build_detection_train_loader(
            records([1], [1], [1], [1]),
            mapper=None,
            total_batch_size=2,
            aspect_ratio_grouping=grouping,
            collate_fn=lambda batch: torch.tensor(ids(batch)),
        )
        assert next(iter(loader)).shape == (2,)


class Count(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def test_batches_of_an_iterable_dataset():
    assert list(build_batch_data_loader(Count(), None, 2)) == [[0, 1], [2, 3]]
    assert list(build_batch_data_loader(Count(), None, 2, drop_last=False)) == [[0, 1], [2, 3], [4]]
    assert list(build_batch_data_loader(Count(), None, 0, single_gpu_batch_size=3)) == [[0, 1, 2]]
    with pytest.raises(ValueError):
        build_batch_data_loader(Count(), None, 2, single_gpu_batch_size=3)
    with pytest.raises(AssertionError):
        build_batch_data_loader(Count(), SequentialSampler(range(5)), 2)
    with pytest.raises(AssertionError):
        build_batch_data_loader(Count(), None, 0)


def test_batch_size_is_split_among_ranks(monkeypatch):
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    assert list(build_batch_data_loader(Count(), None, 4)) == [[0, 1], [2, 3]]
    with pytest.raises(AssertionError, match="divisible"):
        build_batch_data_loader(Count(), None, 3)


def test_test_loader_gives_everything_in_order():
    dataset = records([1], [], [-1])
    assert [ids(batch) for batch in build_detection_test_loader(dataset, mapper=None)] == [[0], [1], [2]]
    loader = build_detection_test_loader(dataset, mapper=lambda r: r["image_id"], batch_size=2, num_workers=1)
    assert list(loader) == [[0, 1], [2]] and len(loader) == 2
    loader = build_detection_test_loader(
        MapDataset(dataset, lambda r: r["image_id"]), mapper=None, batch_size=3, collate_fn=sum
    )
    assert list(loader) == [3]


@pytest.fixture
def cfg(coco_content, write, name, tmp_path):
    register_coco_instances(name, {}, write(coco_content), str(tmp_path))
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (20,), 20
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 1
    return cfg


def test_train_loader_from_config(cfg):
    batches = list(itertools.islice(build_detection_train_loader(cfg), 4))
    assert {batch[0]["image_id"] for batch in batches} == {3, 7}  # the empty image is left out
    assert all(batch[0]["image"].shape[0] == 3 and len(batch[0]["instances"]) for batch in batches)
    again = list(itertools.islice(build_detection_train_loader(cfg, mapper=lambda r: r), 4))
    assert [ids(batch) for batch in again] == [ids(batch) for batch in batches]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    batches = list(itertools.islice(build_detection_train_loader(cfg, mapper=lambda r: r), 6))
    assert {batch[0]["image_id"] for batch in batches} == {3, 7, 9}


def test_repeat_factors_from_config(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 2.0  # "two" is in one of two images: sqrt(2 / 0.5) = 2 for image 3
    cfg.DATALOADER.REPEAT_SQRT = True
    loader = build_detection_train_loader(cfg, mapper=lambda r: r)
    drawn = ids(itertools.chain(*itertools.islice(loader, 400)))
    # image 7 has "five" alone, in both images: sqrt(2 / 1)
    assert drawn.count(3) / drawn.count(7) == pytest.approx(2 / 2**0.5, rel=0.15)


def test_unknown_sampler(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg)


def test_test_loader_from_config(cfg, name):
    batches = list(build_detection_test_loader(cfg, name))
    assert [ids(batch) for batch in batches] == [[3], [7], [9]]
    assert all("instances" not in batch[0] for batch in batches)
    assert [ids(b) for b in build_detection_test_loader(cfg, name, batch_size=2)] == [[3, 7], [9]]


def test_trivial_collator():
    batch = [1, "a"]
    assert trivial_batch_collator(batch) is batch


def test_workers_have_their_own_random_state():
    drawn = []
    for worker in (0, 1, 0):
        torch.manual_seed(5)
        worker_init_reset_seed(worker)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[2] and drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
