"""Loaders of batches, from dataset names or from lists of records."""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
]

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The records that have at least one annotation that is not a crowd."""
    kept = [
        record
        for record in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in record["annotations"])
    ]
    removed = len(dataset_dicts) - len(kept)
    logger.info("Removed %d images with no usable annotations. %d images left.", removed, len(kept))
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]) -> None:
    """Log the number of instances of each class, without crowds.

    Raises:
        AssertionError: an annotation's "category_id" is not the index of a class.
    """
    counts = np.zeros(len(class_names), dtype=int)
    for record in dataset_dicts:
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            category = annotation["category_id"]
            assert 0 <= category < len(class_names), (
                f"Got an invalid category_id={category} for a dataset of {len(class_names)} classes"
            )
            counts[category] += 1

    names = [name if len(name) <= 13 else name[:11] + ".." for name in class_names]
    cells = list(itertools.chain.from_iterable(zip(names, counts.tolist(), strict=True)))
    if len(class_names) > 1:
        cells += ["total", int(counts.sum())]
    columns = min(6, len(class_names) * 2)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    table = tabulate(
        rows,
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    message = f"Distribution of instances among all {len(class_names)} categories:\n"
    log_first_n(logging.INFO, message + colored(table, "cyan"), key="message")


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
):
    """Load registered datasets and join them.

    Args:
        names: a name in ``DatasetCatalog``, or a list of them.
        filter_empty: leave out images without annotations, or with crowds only.
        min_keypoints, proposal_files: upstream's arguments; only their defaults are accepted.
        check_consistency: check that the datasets have the same ``thing_classes``.

    Returns:
        The records of all datasets in one list. If the registered functions return ``torch.utils.data.Dataset``
        objects, their concatenation.

    Raises:
        KeyError: a name is not registered.
        AssertionError: a dataset is empty, or no record is left after filtering.
        ValueError: the datasets have different classes.
    """
    if min_keypoints or proposal_files is not None:
        raise NotImplementedError("detectron2-core has no keypoints and no precomputed proposals")
    names = [names] if isinstance(names, str) else list(names)
    assert names, "no dataset names given"
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return loaded[0] if len(loaded) == 1 else torchdata.ConcatDataset(loaded)

    for name, records in zip(names, loaded, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"
    dataset_dicts = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if check_consistency and has_instances and hasattr(MetadataCatalog.get(names[0]), "thing_classes"):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert len(dataset_dicts), f"No valid data found in {','.join(names)}."
    return dataset_dicts


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs,
):
    """A loader of batches, which are lists of elements.

    Args:
        dataset: map-style or iterable.
        sampler: the order of a map-style dataset; None for an iterable dataset.
        total_batch_size: the batch size over all ranks, a multiple of their number.
        aspect_ratio_grouping: see :class:`AspectRatioGroupedDataset`.
        num_workers, prefetch_factor, persistent_workers, pin_memory, kwargs: as for ``DataLoader``.
        collate_fn: applied to each batch's list. With None the batch stays a list.
        drop_last: leave out an incomplete last batch.
        single_gpu_batch_size: the batch size of this rank, in place of ``total_batch_size`` (then 0 or None).
        seed: the seed of the workers' random numbers.

    Raises:
        ValueError: both batch sizes are given.
    """
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError("total_batch_size and single_gpu_batch_size exclude each other: give one.")
        batch_size = single_gpu_batch_size
    else:
        world_size = get_world_size()
        assert total_batch_size > 0 and total_batch_size % world_size == 0, (
            f"Total batch size ({total_batch_size}) must be divisible by the number of gpus ({world_size})."
        )
        batch_size = total_batch_size // world_size
    logger.info("Making batched data loader with batch_size=%d", batch_size)

    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    options = dict(
        num_workers=num_workers,
        worker_init_fn=worker_init_reset_seed,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers,
        pin_memory=pin_memory,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    )
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate_fn or trivial_batch_collator,
            **options,
        )
    assert drop_last, "Aspect ratio grouping will drop incomplete batches."
    elements = torchdata.DataLoader(dataset, collate_fn=_only_element, **options)
    batches = AspectRatioGroupedDataset(elements, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _train_sampler(cfg, dataset) -> torchdata.Sampler | None:
    if isinstance(dataset, torchdata.IterableDataset):
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    raise ValueError(f"Unknown training sampler: {name}")


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict:
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    return {
        "dataset": dataset,
        "sampler": _train_sampler(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs,
):
    """An endless loader of training batches. It takes these arguments, or a config: ``build_detection_train_loader(cfg,
    mapper=None, dataset=None, sampler=None)``.

    Args:
        dataset: a list of records, or a dataset, map-style or iterable.
        mapper: turns a record into the model's input. The default with a config is ``DatasetMapper(cfg, True)``.
        sampler: by default :class:`TrainingSampler`; None for an iterable dataset.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs: see
            :func:`build_batch_data_loader`.
    """
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        assert isinstance(sampler, torchdata.Sampler), f"Expect a Sampler but got {type(sampler)}"
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(cfg, dataset_name, mapper=None) -> dict:
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader that gives every record once, divided among the ranks. It takes these arguments, or a config:
    ``build_detection_test_loader(cfg, dataset_name, mapper=None)``.

    Args:
        dataset: a list of records, or a dataset, map-style or iterable.
        mapper: turns a record into the model's input. The default with a config is ``DatasetMapper(cfg, False)``.
        sampler: by default :class:`InferenceSampler`; None for an iterable dataset.
        batch_size: the batch size of this rank.
        num_workers: as for ``DataLoader``.
        collate_fn: applied to each batch's list; None leaves it a list.
    """
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _mapped(dataset: list | torchdata.Dataset, mapper: Callable | None) -> torchdata.Dataset:
    if isinstance(dataset, list):
        # Deserializing returns a new copy each time.
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _only_element(batch: list):
    return batch[0]


def trivial_batch_collator(batch: list) -> list:
    """Returns the batch unchanged."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed NumPy's and Python's random generators in a DataLoader worker. PyTorch seeds only its own."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
