"""From a task or a dataset to its loader: batches are lists of dicts, as Detectron2's models take them."""

from detectron2.config import CfgNode
from detectron2.utils import comm

from ...errors import UserError
from ...kinds import configured_task, evaluating_task
from ..datasets.captioned import captioned_images
from ..datasets.records import Records, check_known
from ..datasets.shards import ShardRecords, is_in_shards
from ..datasets.texts import build_tokenizer
from ..mappers.captions import ReferenceMapper
from ..order import SampleOrder
from .test import TestLoader
from .train import TrainingBatches, TrainLoader
from .transport import Mapper


def build_task_train_loader(cfg: CfgNode, task_name: str, start_batch: int = 0) -> TrainLoader:
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
    task = configured_task(cfg, task_name)
    records, mapper = task.kind.training_data(cfg, task)
    batch_size, world_size = task.settings.ims_per_batch, comm.get_world_size()
    if batch_size % world_size:
        raise UserError(f"TASKS.{task_name}.IMS_PER_BATCH: {world_size} processes cannot share {batch_size} equally")
    seed = max(cfg.SEED, 0)
    in_shards = isinstance(records, ShardRecords)
    batches = TrainingBatches(
        records,
        mapper,
        records.order(task_name, seed) if in_shards else SampleOrder(len(records), task_name, seed),
        batch_size=batch_size,
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


def build_test_loader(cfg: CfgNode, dataset_name: str) -> TestLoader:
    """Every record of a dataset once, shared among the ranks; of a corpus, every token masked once.

    The task that evaluates the dataset (:func:`~uniperceiver_v2.kinds.evaluating_task`) says how the records are
    prepared, for example at which size images are classified. ``TEST.IMS_PER_BATCH`` counts the batches of all ranks
    together.

    Raises:
        UserError: the dataset cannot be used or evaluated; in iteration, an image cannot be read.
    """
    check_known(dataset_name)
    task = evaluating_task(cfg, dataset_name)
    records, mapper = task.kind.test_data(cfg, dataset_name, task)
    batch_size = max(cfg.TEST.IMS_PER_BATCH // comm.get_world_size(), 1)
    return TestLoader(records, mapper, batch_size=batch_size, num_workers=cfg.DATALOADER.NUM_WORKERS)


def training_images_of_captions(cfg: CfgNode) -> tuple[Records | ShardRecords, Mapper]:
    """All images that captioning tasks train on, each once, and how they are prepared for evaluation.

    Shards of the web are left out where other data has captions: written for their images, these come closer to what
    a test set has.

    Raises:
        UserError: a dataset cannot be used.
    """
    tasks = [cfg.TASKS[name] for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == "captioning"]
    names = list(dict.fromkeys(name for task in tasks for name in task.DATASETS))
    annotated = [name for name in names if not is_in_shards(name)]
    return captioned_images(annotated or names, build_tokenizer(cfg)), ReferenceMapper(cfg, "captioning")
