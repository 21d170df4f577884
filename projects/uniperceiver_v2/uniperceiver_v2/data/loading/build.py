"""From a task or a dataset to batches: lists of dicts, as Detectron2's models take them."""

import difflib
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ..datasets.records import (
    Records,
    candidate_names,
    check_known,
    load_classification_training,
    load_dataset,
    load_detection_training,
)
from ..datasets.shards import ShardRecords, is_in_shards
from ..datasets.texts import build_tokenizer, load_captions, load_texts
from ..mappers.captions import CaptionMapper, PairMapper, ReferenceMapper, RetrievalMapper
from ..mappers.images import ClassificationMapper, DetectionMapper
from ..mappers.texts import EachTokenOnceMapper, TextMapper, each_token_once
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
    task = cfg.TASKS[task_name]
    records, mapper = TRAINING_DATA[task.KIND](cfg, task_name)
    world_size = comm.get_world_size()
    if task.IMS_PER_BATCH % world_size:
        raise UserError(
            f"TASKS.{task_name}.IMS_PER_BATCH: {world_size} processes cannot share {task.IMS_PER_BATCH} equally"
        )
    seed = max(cfg.SEED, 0)
    in_shards = isinstance(records, ShardRecords)
    batches = TrainingBatches(
        records,
        mapper,
        records.order(task_name, seed) if in_shards else SampleOrder(len(records), task_name, seed),
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


def build_test_loader(cfg: CfgNode, dataset_name: str) -> TestLoader:
    """Every record of a dataset once, shared among the ranks; of a corpus, every token masked once.

    What the records are prepared for follows from the ``evaluator_type`` in the dataset's metadata: "coco"
    and "lvis" for detection, "imagenet" for classification, "coco_caption" for captioning, "retrieval" and
    "corpus" (language modelling). The batch size, and the size of images to be classified, are those of the
    task of that kind, of several the one whose dataset's name is most like this one's.

    Raises:
        UserError: the dataset cannot be used or evaluated; in iteration, an image cannot be read.
    """
    kind = _evaluated_kind(dataset_name)
    task_name = _task_like(cfg, kind, dataset_name)
    records, mapper = TEST_DATA[kind](cfg, dataset_name, task_name)
    batch_size = cfg.TASKS[task_name].IMS_PER_BATCH // comm.get_world_size() if task_name else 1
    return TestLoader(records, mapper, batch_size=max(batch_size, 1), num_workers=cfg.DATALOADER.NUM_WORKERS)


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
    return _captioned_images(annotated or names, build_tokenizer(cfg)), ReferenceMapper(cfg, "captioning")


def _detection_training(cfg: CfgNode, task_name: str) -> tuple[Records, Mapper]:
    names = cfg.TASKS[task_name].DATASETS
    records = load_detection_training(
        names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, with_masks=cfg.MODEL.MASK_ON
    )
    return records, DetectionMapper(cfg, task_name, candidate_names(names[0]), is_train=True)


def _classification_training(cfg: CfgNode, task_name: str) -> tuple[Records, Mapper]:
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


def _caption_training(cfg: CfgNode, task_name: str) -> tuple[Records | ShardRecords, Mapper]:
    task, tokenizer = cfg.TASKS[task_name], build_tokenizer(cfg)
    mapper = CaptionMapper(cfg, task_name, tokenizer, task.CAPTIONS_PER_IMAGE)
    return _captioned_images(task.DATASETS, tokenizer), mapper


def _pair_training(cfg: CfgNode, task_name: str) -> tuple[Records | ShardRecords, Mapper]:
    tokenizer = build_tokenizer(cfg)
    return _captioned_images(cfg.TASKS[task_name].DATASETS, tokenizer), PairMapper(cfg, task_name, tokenizer)


def _captioned_images(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Records | ShardRecords:
    in_shards = [name for name in names if is_in_shards(name)]
    if not in_shards:
        return [record for name in names for record in load_captions(name, tokenizer)]
    if len(in_shards) < len(names):
        other = next(name for name in names if name not in in_shards)
        raise UserError(
            f"datasets '{in_shards[0]}', which is in shards, and '{other}', which is not, cannot be of one task; "
            "give each a task of its own"
        )
    return ShardRecords([shard for name in names for shard in load_dataset(name).shards])


def _text_training(cfg: CfgNode, task_name: str) -> tuple[Records, Mapper]:
    task, tokenizer = cfg.TASKS[task_name], build_tokenizer(cfg)
    records = [record for name in task.DATASETS for record in load_texts(name, tokenizer)]
    return records, TextMapper(task_name, tokenizer, task.MASKED_SHARE)


def _detection_test(cfg: CfgNode, dataset_name: str, task_name: str | None) -> tuple[Records, Mapper]:
    records = load_dataset(dataset_name)
    return records, DetectionMapper(cfg, "detection", candidate_names(dataset_name), is_train=False)


def _classification_test(cfg: CfgNode, dataset_name: str, task_name: str | None) -> tuple[Records, Mapper]:
    records = load_dataset(dataset_name)
    size = cfg.TASKS[task_name].IMAGE_SIZE if task_name else cfg.INPUT.MIN_SIZE_TEST
    return records, ClassificationMapper("classification", candidate_names(dataset_name), cfg.INPUT.FORMAT, size)


def _captioning_test(cfg: CfgNode, dataset_name: str, task_name: str | None) -> tuple[Records, Mapper]:
    return load_captions(dataset_name, build_tokenizer(cfg)), ReferenceMapper(cfg, "captioning")


def _retrieval_test(cfg: CfgNode, dataset_name: str, task_name: str | None) -> tuple[Records, Mapper]:
    tokenizer = build_tokenizer(cfg)
    return load_captions(dataset_name, tokenizer), RetrievalMapper(cfg, "retrieval", tokenizer)


def _text_test(cfg: CfgNode, dataset_name: str, task_name: str | None) -> tuple[Records, Mapper]:
    tokenizer = build_tokenizer(cfg)
    records = each_token_once(load_texts(dataset_name, tokenizer), tokenizer)
    return records, EachTokenOnceMapper("language_modelling", tokenizer)


# By kind of task. A new kind adds its lines here.
TRAINING_DATA = {
    "detection": _detection_training,
    "classification": _classification_training,
    "captioning": _caption_training,
    "retrieval": _pair_training,
    "language_modelling": _text_training,
}
TEST_DATA = {
    "detection": _detection_test,
    "classification": _classification_test,
    "captioning": _captioning_test,
    "retrieval": _retrieval_test,
    "language_modelling": _text_test,
}
KIND_BY_EVALUATOR = {
    "coco": "detection",
    "lvis": "detection",
    "imagenet": "classification",
    "coco_caption": "captioning",
    "retrieval": "retrieval",
    "corpus": "language_modelling",
}


def _evaluated_kind(dataset_name: str) -> str:
    check_known(dataset_name)
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in KIND_BY_EVALUATOR:
        raise UserError(f"dataset '{dataset_name}' (evaluator_type {evaluator_type!r}) cannot be evaluated")
    return KIND_BY_EVALUATOR[evaluator_type]


def _task_like(cfg: CfgNode, kind: str, dataset_name: str) -> str | None:
    """The task of this kind whose dataset's name is most like ``dataset_name``."""
    tasks = [name for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == kind]  # noqa: SIM300

    def likeness(task_name: str) -> float:
        names = cfg.TASKS[task_name].DATASETS
        return max(difflib.SequenceMatcher(None, dataset_name, name).ratio() for name in names)

    return max(tasks, key=likeness, default=None)
