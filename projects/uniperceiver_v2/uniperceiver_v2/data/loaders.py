"""From a task or a dataset to batches: lists of dicts, as Detectron2's models take them."""

import difflib
import io
import logging
import pickle
from collections.abc import Callable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError
from .mappers import ClassificationMapper, DetectionMapper, UnreadableImage
from .records import (
    Records,
    candidate_names,
    load_classification_training,
    load_dataset,
    load_detection_training,
)
from .sampling import SampleOrder, numpy_draws_from

logger = logging.getLogger(__name__)

Batch = list[dict]

MIN_IMAGES_FOR_SHARE = 100  # fewer say nothing about the share of unreadable images
MAX_REPLACEMENTS = 20  # unreadable images in a row for one place in a batch


def build_task_train_loader(cfg: CfgNode, task_name: str, start_batch: int = 0) -> "TrainLoader":
    """This rank's batches of a task, without end.

    Batch n is a pure function of (cfg.SEED, task name, n): neither the number of workers nor where a run was
    interrupted changes it, and the ranks' shares together are what one rank would get.

    Args:
        cfg: of a run.
        task_name: of ``cfg.TASKS``.
        start_batch: number of the first batch.

    Raises:
        UserError: the task's data cannot be used; in iteration, too many images cannot be read.
    """
    task = cfg.TASKS[task_name]
    records, mapper = _TRAINING_DATA[task.KIND](cfg, task_name)
    world_size = comm.get_world_size()
    if task.IMS_PER_BATCH % world_size:
        raise UserError(
            f"TASKS.{task_name}.IMS_PER_BATCH: {world_size} processes cannot share {task.IMS_PER_BATCH} equally"
        )
    batches = TrainingBatches(
        records,
        mapper,
        SampleOrder(len(records), task_name, max(cfg.SEED, 0)),
        batch_size=task.IMS_PER_BATCH,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    return TrainLoader(
        batches,
        start_batch=start_batch,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_corrupt_share=cfg.DATALOADER.MAX_CORRUPT_SHARE,
        task_name=task_name,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Every record of a dataset once, shared among the ranks.

    What the images are prepared for follows from the ``evaluator_type`` in the dataset's metadata: "coco"
    and "lvis" for detection, "imagenet" for classification. The batch size, and the size of images to be
    classified, are those of the task of that kind, of several the one whose dataset's name is most like
    this one's.

    Raises:
        UserError: the dataset cannot be used or evaluated.
    """
    records = load_dataset(dataset_name)
    candidates = candidate_names(dataset_name)
    kind = _evaluated_kind(dataset_name)
    task_name = _task_like(cfg, kind, dataset_name)
    if kind == "detection":
        mapper = DetectionMapper(cfg, kind, candidates, is_train=False)
    else:
        size = cfg.TASKS[task_name].IMAGE_SIZE if task_name else cfg.INPUT.MIN_SIZE_TEST
        mapper = ClassificationMapper(kind, candidates, cfg.INPUT.FORMAT, size)
    batch_size = cfg.TASKS[task_name].IMS_PER_BATCH // comm.get_world_size() if task_name else 1
    return build_detection_test_loader(
        records,
        mapper=_TestMapper(mapper),
        batch_size=max(batch_size, 1),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _detection_training(cfg: CfgNode, task_name: str) -> tuple[Records, Callable[[dict], dict]]:
    names = cfg.TASKS[task_name].DATASETS
    records = load_detection_training(
        names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, with_masks=cfg.MODEL.MASK_ON
    )
    return records, DetectionMapper(cfg, task_name, candidate_names(names[0]), is_train=True)


def _classification_training(cfg: CfgNode, task_name: str) -> tuple[Records, Callable[[dict], dict]]:
    task = cfg.TASKS[task_name]
    records = load_classification_training(task.DATASETS)
    mapper = ClassificationMapper(
        task_name,
        candidate_names(task.DATASETS[0]),
        cfg.INPUT.FORMAT,
        task.IMAGE_SIZE,
        crop_scale=task.CROP_SCALE,
        flip=task.FLIP,
    )
    return records, mapper


# By kind of task. A new kind adds its line here.
_TRAINING_DATA = {"detection": _detection_training, "classification": _classification_training}
_KIND_BY_EVALUATOR = {"coco": "detection", "lvis": "detection", "imagenet": "classification"}


def _evaluated_kind(dataset_name: str) -> str:
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _KIND_BY_EVALUATOR:
        raise UserError(f"dataset '{dataset_name}' (evaluator_type {evaluator_type!r}) cannot be evaluated")
    return _KIND_BY_EVALUATOR[evaluator_type]


def _task_like(cfg: CfgNode, kind: str, dataset_name: str) -> str | None:
    """The task of this kind whose dataset's name is most like ``dataset_name``."""
    tasks = [name for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == kind]  # noqa: SIM300

    def likeness(task_name: str) -> float:
        names = cfg.TASKS[task_name].DATASETS
        return max(difflib.SequenceMatcher(None, dataset_name, name).ratio() for name in names)

    return max(tasks, key=likeness, default=None)


class TrainingBatches(Dataset):
    """Batch n of a task as element n: this rank's samples of it, and what could not be read.

    Args:
        records: of the task's datasets.
        mapper: from a record to a sample; may raise :class:`UnreadableImage`.
        order: which record stands where.
        batch_size: over all ranks, a multiple of ``world_size``.
        rank, world_size: which share of it.
    """

    def __init__(
        self,
        records: Records,
        mapper: Callable[[dict], dict],
        order: SampleOrder,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
    ):
        # Serialised, so that forked workers share the records' memory and get a fresh copy of what they read.
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper
        self._order = order
        self._batch_size = batch_size
        self.samples_per_batch = batch_size // world_size
        first = rank * self.samples_per_batch
        self._places = range(first, first + self.samples_per_batch)

    def __getitem__(self, batch: int) -> tuple[Batch, list[str]]:
        """The samples, and a message for each image that could not be read.

        Samples are fewer than ``samples_per_batch`` only where no replacement could be read either.
        """
        samples: Batch = []
        unreadable: list[str] = []
        for place in self._places:
            sample = self._make_sample(batch * self._batch_size + place, unreadable)
            if sample is None:
                break
            samples.append(sample)
        return samples, unreadable

    def _make_sample(self, position: int, unreadable: list[str]) -> dict | None:
        rng = self._order.rng_at(position)
        index = self._order.index_at(position)
        for _ in range(MAX_REPLACEMENTS):
            try:
                with numpy_draws_from(rng):
                    return self._mapper(self._records[index])
            except UnreadableImage as error:
                unreadable.append(str(error))
                index = self._order.other_index(rng)
        return None


class TrainLoader:
    """Iterates over :class:`TrainingBatches` from ``start_batch`` on, and answers for unreadable images.

    Each is replaced by another one, counted, and named once in the log.

    Args:
        batches: where they come from.
        start_batch: number of the first.
        num_workers: processes that prepare them; 0 for this one.
        max_corrupt_share: of the images read, beyond which iteration ends.
        task_name: for messages.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        *,
        start_batch: int,
        num_workers: int,
        max_corrupt_share: float,
        task_name: str,
    ):
        self._loader = DataLoader(
            batches,
            sampler=_CountFrom(start_batch),
            batch_size=None,
            collate_fn=pack if num_workers else _as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self._samples_per_batch = batches.samples_per_batch
        self._max_corrupt_share = max_corrupt_share
        self._task_name = task_name
        self._num_read = 0
        self._num_unreadable = 0
        self._named: set[str] = set()

    @property
    def num_unreadable(self) -> int:
        """Unreadable images met so far, each as often as it was met."""
        return self._num_unreadable

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: the share of unreadable images is above the limit.
        """
        for loaded in self._loader:
            samples, unreadable = unpack(loaded) if self._loader.num_workers else loaded
            self._num_read += len(samples) + len(unreadable)
            self._num_unreadable += len(unreadable)
            for message in unreadable:
                if message not in self._named:
                    self._named.add(message)
                    logger.warning("task %s: skipped an image that cannot be read: %s", self._task_name, message)
            self._check_share(is_complete=len(samples) == self._samples_per_batch)
            yield samples

    def _check_share(self, is_complete: bool) -> None:
        too_few_to_tell = self._num_read < MIN_IMAGES_FOR_SHARE
        tolerable = self._num_unreadable <= self._max_corrupt_share * self._num_read
        if is_complete and (too_few_to_tell or tolerable):
            return
        raise UserError(
            f"task {self._task_name}: {self._num_unreadable} of {self._num_read} images cannot be read, more than "
            f"DATALOADER.MAX_CORRUPT_SHARE ({self._max_corrupt_share}) allows, among them "
            f"{'; '.join(sorted(self._named)[:3])}"
        )


def _as_it_is(loaded: tuple[Batch, list[str]]) -> tuple[Batch, list[str]]:
    return loaded


class _CountFrom(Sampler):
    """start, start + 1, ... without end."""

    def __init__(self, start: int):
        self._start = start

    def __iter__(self) -> Iterator[int]:
        number = self._start
        while True:
            yield number
            number += 1


class _TestMapper:
    """A mapper for evaluation, where an image cannot be left out: what cannot be read ends the run."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict:
        try:
            return self._mapper(record)
        except UnreadableImage as error:
            raise UserError(f"an image to be evaluated cannot be read: {error}") from error


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, by their bytes."""

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def pack(content) -> torch.Tensor:
    """Anything that can be pickled as one tensor, uint8 [bytes].

    DataLoader passes each tensor between processes by a file descriptor of its own. Batches of hundreds of
    images with their masks would soon use up all that a process may open; packed, a batch is one.
    """
    buffer = io.BytesIO()
    _TensorPickler(buffer, protocol=5).dump(content)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpack(packed: torch.Tensor):
    """What :func:`pack` was given. Only for bytes from this program's own processes."""
    return pickle.loads(packed.numpy())
