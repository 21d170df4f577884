"""Checks of a run's settings before any work: names must exist, and numbers must be in their ranges."""

from collections.abc import Sequence
from itertools import pairwise

from detectron2.config import CfgNode

from ..errors import UserError, nearest
from ..evaluation.spice import missing_models
from ..kinds import KINDS, evaluating_task, kind_of_dataset
from ..modeling.image_encoder.conventions import CONVENTIONS
from .ranges import LARGEST_SIDE, check_ranges

OPTIMIZERS = ("TaskBalancedAdamW", "AdamW")
SAMPLINGS = ("unmixed", "even", "mixed")
PRECISIONS = ("bfloat16", "float16")
_SHARES = (1e-3, 1, int | float, "two shares above 0 and at most 1")
_PIXELS = (1, LARGEST_SIDE, int, f"two whole numbers of pixels, from 1 to {LARGEST_SIDE}")
_CROPS = {"relative": _SHARES, "relative_range": _SHARES, "absolute": _PIXELS, "absolute_range": _PIXELS}
PARTS = ("backbone", "region_network", "text_encoder", "decoder")


def check_config(cfg: CfgNode, *, training: bool, world_size: int = 1, datasets: bool = True) -> None:
    """Check settings before any work: names must exist, and numbers must be in their ranges.

    Args:
        cfg: the settings.
        training: whether the tasks will be trained.
        world_size: the number of processes. Those of a task group must share each task's batch equally.
        datasets: whether to check the data of the tasks and of the evaluation, too.

    Raises:
        UserError: for the first setting that is wrong.
    """
    from detectron2.modeling import META_ARCH_REGISTRY

    _check_choice("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, [name for name, _ in META_ARCH_REGISTRY])
    if cfg.MODEL.META_ARCHITECTURE == "UniPerceiverV2":
        check_ranges(cfg)
    _check_input(cfg)
    _check_experts(cfg)
    _check_regions(cfg)
    if cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH >= 1:
        raise UserError(
            "MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH is a share of samples in [0, 1), or below 0 to keep the model's, "
            f"not {cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH}"
        )
    for key in ("ACTIVATION_CHECKPOINTING", "COMPILE"):
        for part in cfg.MODEL.UNIPERCEIVER_V2[key]:
            _check_choice(f"MODEL.UNIPERCEIVER_V2.{key}", part, PARTS)
    _check_graphs(cfg)
    for name in cfg.TASKS.NAMES:
        _check_choice("TASKS.NAMES", name, [task for task in cfg.TASKS if task != "NAMES"])
        KINDS[cfg.TASKS[name].KIND].settings.check(cfg.TASKS[name], f"TASKS.{name}")
    for key, seconds in cfg.PROCESSES.items():
        if seconds < 1:
            raise UserError(f"PROCESSES.{key} is a time of at least 1 second, not {seconds}")
    if not datasets:
        return
    _check_datasets("DATASETS.TEST", cfg.DATASETS.TEST)
    _check_datasets("DATASETS.HELD_OUT", cfg.DATASETS.HELD_OUT)
    if training:
        _check_task_groups(cfg, world_size)
    _check_tasks(cfg, max(world_size // max(cfg.SOLVER.TASK_GROUPS, 1), 1))
    _check_evaluation(cfg)
    if training:
        _check_training(cfg)


def _check_input(cfg: CfgNode) -> None:
    """How images are augmented. Detectron2 would find out in a worker, at the first image."""
    node, crop = cfg.INPUT, cfg.INPUT.CROP
    _check_choice("INPUT.RANDOM_FLIP", node.RANDOM_FLIP, ("horizontal", "vertical", "none"))
    _check_choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", node.MIN_SIZE_TRAIN_SAMPLING, ("choice", "range"))
    sizes = list(node.MIN_SIZE_TRAIN)
    if node.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN is a smallest and a largest size where INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range', "
            f"not {sizes}"
        )
    if not crop.ENABLED:
        return
    _check_choice("INPUT.CROP.TYPE", crop.TYPE, list(_CROPS))
    least, most, kind, what = _CROPS[crop.TYPE]
    size = list(crop.SIZE)
    if len(size) != 2 or not all(isinstance(number, kind) and least <= number <= most for number in size):
        raise UserError(f"INPUT.CROP.SIZE is {what} with INPUT.CROP.TYPE '{crop.TYPE}', not {size}")
    if crop.TYPE == "absolute_range" and size[0] > size[1]:
        raise UserError(f"INPUT.CROP.SIZE is a smallest and a largest size, not {size}")


def _check_experts(cfg: CfgNode) -> None:
    prefix, node = "MODEL.UNIPERCEIVER_V2.DECODER", cfg.MODEL.UNIPERCEIVER_V2.DECODER
    if node.EXPERTS < 0:
        raise UserError(f"{prefix}.EXPERTS is a number of experts, 0 for dense networks, not {node.EXPERTS}")
    if node.EXPERTS and not 1 <= node.ACTIVE_EXPERTS <= node.EXPERTS:
        raise UserError(
            f"{prefix}.ACTIVE_EXPERTS must be between 1 and {prefix}.EXPERTS ({node.EXPERTS}), "
            f"not {node.ACTIVE_EXPERTS}"
        )


def _check_regions(cfg: CfgNode) -> None:
    prefix, node = "MODEL.UNIPERCEIVER_V2.REGION", cfg.MODEL.UNIPERCEIVER_V2.REGION
    _check_choice(f"{prefix}.CONVENTIONS", node.CONVENTIONS, list(CONVENTIONS))
    for key, least in (("FIRST_SCALE", 0), ("EXTRA_SCALES", 0), ("OBJECTNESS_PARTS", 1)):
        if node[key] < least:
            raise UserError(f"{prefix}.{key} must be at least {least}, not {node[key]}")


def _check_task_groups(cfg: CfgNode, world_size: int) -> None:
    groups = cfg.SOLVER.TASK_GROUPS
    if groups < 1:
        raise UserError(f"SOLVER.TASK_GROUPS must be at least 1, not {groups}")
    if world_size % groups and groups % world_size:
        raise UserError(
            f"SOLVER.TASK_GROUPS: {world_size} processes and {groups} groups cannot be divided equally. One of the two "
            "numbers must be a multiple of the other"
        )
    if groups > 1 and cfg.SOLVER.SAMPLING == "mixed":
        raise UserError(
            "SOLVER.TASK_GROUPS needs SOLVER.SAMPLING 'unmixed': mixed sampling trains all tasks in every iteration"
        )


def _check_tasks(cfg: CfgNode, sharers: int) -> None:
    names = list(cfg.TASKS.NAMES)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"TASKS.NAMES names the task '{name}' more than once")
        task, prefix = cfg.TASKS[name], f"TASKS.{name}"
        if not task.DATASETS:
            raise UserError(f"{prefix}.DATASETS is empty")
        _check_datasets(f"{prefix}.DATASETS", task.DATASETS)
        if task.IMS_PER_BATCH % sharers:
            raise UserError(f"{prefix}.IMS_PER_BATCH: {sharers} processes cannot share {task.IMS_PER_BATCH} equally")
        if task.IMS_PER_BATCH // sharers < cfg.SOLVER.ACCUMULATION_STEPS:
            raise UserError(
                f"{prefix}.IMS_PER_BATCH: the {task.IMS_PER_BATCH // sharers} of a process are fewer than "
                f"SOLVER.ACCUMULATION_STEPS ({cfg.SOLVER.ACCUMULATION_STEPS})"
            )
        if task.get("CENTRE_WEIGHT", 0) and not cfg.MODEL.UNIPERCEIVER_V2.REGION.FINE_DIM:
            raise UserError(
                f"{prefix}.CENTRE_WEIGHT needs a map of centres: MODEL.UNIPERCEIVER_V2.REGION.FINE_DIM above 0"
            )


def _check_evaluation(cfg: CfgNode) -> None:
    if cfg.TEST.IMS_PER_BATCH < 1:
        raise UserError(f"TEST.IMS_PER_BATCH must be at least 1, not {cfg.TEST.IMS_PER_BATCH}")
    if cfg.TEST.AMP.ENABLED:
        _check_choice("SOLVER.AMP.PRECISION", cfg.SOLVER.AMP.PRECISION, PRECISIONS)
    if cfg.TEST.SPICE_MODELS and (missing := missing_models(cfg.TEST.SPICE_MODELS)):
        raise UserError(
            f"TEST.SPICE_MODELS: no file {missing[0]}; it is in stanford-corenlp-full-2015-12-09.zip of "
            "https://nlp.stanford.edu/software"
        )
    for name, task in cfg.TASKS.items():
        if name != "NAMES":
            _check_datasets(f"TASKS.{name}.EVALUATES", task.EVALUATES)
    for name in cfg.DATASETS.TEST:
        if kind_of_dataset(name) is not None:  # a subclass of the trainer may evaluate the others
            evaluating_task(cfg, name)
    _check_rerank(cfg)
    _check_best(cfg)


def _check_rerank(cfg: CfgNode) -> None:
    kinds = {cfg.TASKS[name].KIND for name in cfg.TASKS.NAMES}
    for name in cfg.TASKS.NAMES:
        other = "retrieval" if cfg.TASKS[name].KIND == "captioning" else "captioning"
        if cfg.TASKS[name].get("RERANK", 0) and other not in kinds:
            raise UserError(
                f"TASKS.{name}.RERANK asks the likelihood of {other}, but no task of TASKS.NAMES is of KIND {other}; "
                "without one it has to be off"
            )


def _check_best(cfg: CfgNode) -> None:
    metric, patience, kept = cfg.TEST.BEST_METRIC, cfg.SOLVER.EARLY_STOPPING, cfg.SOLVER.CHECKPOINTS_KEPT
    for key, value in (("EARLY_STOPPING", patience), ("CHECKPOINTS_KEPT", kept)):
        if value < 0:
            raise UserError(f"SOLVER.{key} is a number, 0 to turn it off, not {value}")
    if patience and not (metric and cfg.TEST.EVAL_PERIOD > 0):
        raise UserError("SOLVER.EARLY_STOPPING needs a TEST.BEST_METRIC, and a TEST.EVAL_PERIOD above 0")
    if not metric:
        return
    _check_choice("TEST.BEST_MODE", cfg.TEST.BEST_MODE, ("max", "min"))
    if metric.count("/") < 2 or not any(metric.startswith(f"{name}/") for name in cfg.DATASETS.TEST):
        names = ", ".join(cfg.DATASETS.TEST) or "no dataset"
        raise UserError(
            f"TEST.BEST_METRIC is DATASET/ROW/COLUMN, such as 'boats_test/bbox/AP', with a dataset of DATASETS.TEST "
            f"({names}), not '{metric}'"
        )


def _check_training(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if not cfg.TASKS.NAMES:
        raise UserError("TASKS.NAMES is empty: there is no task to train")
    _check_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    _check_choice("SOLVER.SAMPLING", solver.SAMPLING, SAMPLINGS)
    _check_choice("SOLVER.AMP.PRECISION", solver.AMP.PRECISION, PRECISIONS)
    _check_sharding(cfg)
    _check_schedule(cfg)
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty: it is the folder that training writes to")
    if solver.SAMPLING == "mixed" and solver.OPTIMIZER == "TaskBalancedAdamW":
        raise UserError(
            "SOLVER.SAMPLING 'mixed' needs SOLVER.OPTIMIZER 'AdamW': TaskBalancedAdamW normalises the gradient of one "
            "task an iteration, mixed sampling has one gradient for all of them"
        )
    for key in ("BACKBONE_LAYER_DECAY", "TEXT_ENCODER_LAYER_DECAY"):
        if not 0 < solver[key] <= 1:
            raise UserError(f"SOLVER.{key} is a factor above 0 and at most 1, not {solver[key]}")
    for key in ("MAX_ITER", "BASE_LR", "CHECKPOINT_PERIOD", "ACCUMULATION_STEPS", "MAX_SKIPPED_STEPS"):
        if not solver[key] > 0:
            raise UserError(f"SOLVER.{key} must be above 0, not {solver[key]}")
    if not 0 <= solver.WARMUP_ITERS < solver.MAX_ITER:
        raise UserError(
            f"SOLVER.WARMUP_ITERS ({solver.WARMUP_ITERS}) must be below SOLVER.MAX_ITER ({solver.MAX_ITER})"
        )
    if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise UserError(f"SOLVER.BASE_LR_END is a learning rate between 0 and BASE_LR, not {solver.BASE_LR_END}")
    if not 0 <= solver.WEIGHT_AVERAGING < 1:
        raise UserError(f"SOLVER.WEIGHT_AVERAGING is a decay in [0, 1), not {solver.WEIGHT_AVERAGING}")


def _check_schedule(cfg: CfgNode) -> None:
    """The name of the schedule is the trainer's matter: a subclass may have schedules of its own."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME in ("WarmupMultiStepLR", "WarmupCosineLR"):
        _check_choice("SOLVER.WARMUP_METHOD", solver.WARMUP_METHOD, ("linear", "constant"))
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [0, *solver.STEPS]
        if any(one >= following for one, following in pairwise(steps)):
            raise UserError(f"SOLVER.STEPS are iterations above 0 in ascending order, not {solver.STEPS}")


def _check_sharding(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    _check_choice("SOLVER.SHARDING", solver.SHARDING, ("none", "full", "hybrid"))
    _check_choice("SOLVER.CHECKPOINT_FORMAT", solver.CHECKPOINT_FORMAT, ("file", "parts"))
    if solver.SHARDING == "none":
        if solver.CHECKPOINT_FORMAT == "parts":
            raise UserError(
                "SOLVER.CHECKPOINT_FORMAT 'parts' needs SOLVER.SHARDING 'full' or 'hybrid': without it each process "
                "has the whole model, and one file is enough"
            )
        return
    # A gradient of zero has to equal no gradient, as with TaskBalancedAdamW.
    for key, wanted in {"OPTIMIZER": "TaskBalancedAdamW", "TASK_GROUPS": 1}.items():
        if solver[key] != wanted:
            raise UserError(f"SOLVER.SHARDING '{solver.SHARDING}' needs SOLVER.{key} {wanted!r}, not {solver[key]!r}")
    if cfg.MODEL.UNIPERCEIVER_V2.CHANNELS_LAST:  # fully_shard divides contiguous parameters only
        raise UserError(f"MODEL.UNIPERCEIVER_V2.CHANNELS_LAST needs SOLVER.SHARDING 'none', not '{solver.SHARDING}'")
    if solver.AMP.ENABLED and solver.AMP.PRECISION == "float16":
        raise UserError(f"SOLVER.SHARDING '{solver.SHARDING}' needs SOLVER.AMP.PRECISION 'bfloat16' or no autocast")


def _check_graphs(cfg: CfgNode) -> None:
    """CUDA graphs hold the image encoder's kernels as they are without other settings that change how it runs."""
    node = cfg.MODEL.UNIPERCEIVER_V2
    if not node.CUDA_GRAPHS:
        return
    for key in ("COMPILE", "ACTIVATION_CHECKPOINTING"):
        if parts := [part for part in ("backbone", "region_network") if part in node[key]]:
            raise UserError(
                f"MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS needs MODEL.UNIPERCEIVER_V2.{key} without {' and '.join(parts)}"
            )
    if cfg.SOLVER.SHARDING != "none":
        raise UserError(f"MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS needs SOLVER.SHARDING 'none', not '{cfg.SOLVER.SHARDING}'")


def _check_datasets(where: str, names: Sequence[str]) -> None:
    from detectron2.data import DatasetCatalog

    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r} is not the name of a dataset")
        if name not in DatasetCatalog:
            hint = nearest(name, DatasetCatalog.list())
            raise UserError(f"{where}: unknown dataset '{name}'{hint}")


def _check_choice(where: str, name: str, valid: Sequence[str]) -> None:
    if not isinstance(name, str):
        raise UserError(f"{where}: {name!r} is not a name{nearest('', valid)}")
    if name not in valid:
        raise UserError(f"{where}: unknown name '{name}'{nearest(name, valid)}")
