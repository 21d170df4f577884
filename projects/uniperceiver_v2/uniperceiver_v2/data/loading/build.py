"""Builds the loaders of tasks and of test datasets. Batches are lists of dicts, as Detectron2's models take them."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

from ... import ranks
from ...errors import UserError
from ...kinds import ConfiguredTask, configured_task, evaluating_task
from ...reading import remedy_of
from ..datasets.captioned import captioned_images
from ..datasets.held_out import without_held_out
from ..datasets.records import Records, check_known
from ..datasets.shards import InShards, ShardRecords, is_in_shards
from ..datasets.texts import build_tokenizer
from ..mappers.captions import ReferenceMapper
from ..order import CountFrom, RepeatOrder, SampleOrder, ShapeOrder
from .test import TestLoader
from .train import TrainingBatches, TrainLoader
from .transport import Mapper


def build_task_train_loader(cfg: CfgNode, task_name: str, numbers: Iterable[int] = CountFrom(0)) -> TrainLoader:
    """This rank's batches of a task, without end.

    Batch n is a pure function of (cfg.SEED, task name, n). It does not depend on the number of workers or on
    interruptions of the run. The shares of the ranks of a task group together are the batch that a single rank would
    get.

    Args:
        cfg: the settings of a run.
        task_name: a task of ``cfg.TASKS``.
        numbers: the numbers of the batches, without end. With task groups, a group takes only some of a task's batches.

    Raises:
        UserError: the task's data cannot be used. During iteration: too many images cannot be read.
    """
    task = configured_task(cfg, task_name)
    records, mapper = task.kind.training_data(cfg, task)
    records = _without_held_out(cfg, records, task_name)
    batch_size, sharers = task.settings.ims_per_batch, ranks.group_size()
    if batch_size % sharers:
        raise UserError(f"TASKS.{task_name}.IMS_PER_BATCH: {sharers} processes cannot share {batch_size} equally")
    batches = TrainingBatches(
        records,
        mapper,
        _by_shape(
            _order(records, task, max(cfg.SEED, 0)), records, mapper, batch_size, cfg.DATALOADER.BATCHES_BY_SHAPE
        ),
        batch_size=batch_size,
        rank=ranks.rank_in_group(),
        world_size=sharers,
    )
    return TrainLoader(
        batches,
        numbers=numbers,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_corrupt_share=cfg.DATALOADER.MAX_CORRUPT_SHARE,
        task_name=task_name,
        remedy="".join(map(_remedy, task.settings.datasets)),
    )


def _order(records: Records | InShards, task: ConfiguredTask, seed: int) -> SampleOrder:
    """The order in which a task goes through its records."""
    if isinstance(records, InShards):
        return records.order(task.name, seed)
    threshold = getattr(task.settings, "repeat_threshold", 0.0)  # of detection
    if not threshold:
        return SampleOrder(len(records), task.name, seed)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold)
    return RepeatOrder(factors.tolist(), task.name, seed)


def _by_shape(
    order: SampleOrder, records: Records | InShards, mapper: Mapper, batch_size: int, window: int
) -> SampleOrder:
    """The order with images of similar shapes in a batch, where their shapes are known and kept."""
    if not window or getattr(mapper, "makes_squares", False) or isinstance(records, InShards):
        return order
    if not all(record.get("width") and record.get("height") for record in records):
        return order
    return ShapeOrder(order, [record["width"] / record["height"] for record in records], batch_size, window)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> TestLoader:
    """Every record of a dataset once, divided among the ranks. For a corpus, every token masked once.

    The task that evaluates the dataset (:func:`~uniperceiver_v2.kinds.evaluating_task`) decides how records are
    prepared, for example the image size of classification. ``TEST.IMS_PER_BATCH`` is the batch size over all ranks.

    Raises:
        UserError: the dataset cannot be used or evaluated. During iteration: an image cannot be read.
    """
    check_known(dataset_name)
    task = evaluating_task(cfg, dataset_name)
    records, mapper = task.kind.test_data(cfg, dataset_name, task)
    batch_size = max(cfg.TEST.IMS_PER_BATCH // comm.get_world_size(), 1)
    workers = cfg.DATALOADER.NUM_WORKERS
    return TestLoader(records, mapper, batch_size=batch_size, num_workers=workers, remedy=_remedy(dataset_name))


def _remedy(dataset_name: str) -> str:
    return f"; `python datasets/check.py {dataset_name}` names all of its files that are wrong{remedy_of(dataset_name)}"


def training_images_of_captions(cfg: CfgNode) -> tuple[Records | ShardRecords, Mapper]:
    """All images of captioning tasks, each once, and the mapper that prepares them for evaluation.

    If there are other data with captions, shards from the web are left out. Captions that were written for their images
    are more similar to those of a test set.

    Images of test sets are left out, as in training.

    Raises:
        UserError: a dataset cannot be used.
    """
    tasks = [cfg.TASKS[name] for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == "captioning"]
    names = list(dict.fromkeys(name for task in tasks for name in task.DATASETS))
    annotated = [name for name in names if not is_in_shards(name)]
    records = captioned_images(annotated or names, build_tokenizer(cfg))
    first = next(name for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == "captioning")
    mapper = ReferenceMapper(cfg, "captioning", **configured_task(cfg, first).settings.test_sizes)
    return _without_held_out(cfg, records, "captioning"), mapper


def _without_held_out(cfg: CfgNode, records: Records | InShards, task_name: str) -> Records | InShards:
    """Pairs in shards have no ids: they are left out when shards are made (datasets/README.md)."""
    if isinstance(records, InShards):
        return records
    return without_held_out(records, (*cfg.DATASETS.HELD_OUT, *cfg.DATASETS.TEST), task_name)
