"""Refuses settings of Detectron2 that this project does not read, and says what to use instead.

A key may be given with its default value. The ``config.yaml`` that a run writes holds every key, and it must be usable
as a configuration file.
"""

from collections.abc import Iterator

from detectron2.config import CfgNode, get_cfg

from ..errors import UserError

_OWN_ORDER = "each task goes through all of its data again and again, in an order that follows from SEED"
_OWN_PROPOSALS = "proposals are the model's own"

# By key or section: the reason why it is not read, or the key to use instead.
UNUSED = {
    "DATASETS.TRAIN": "each task names its own data: TASKS.<name>.DATASETS",
    "DATASETS.PROPOSAL_FILES_TRAIN": _OWN_PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TEST": _OWN_PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _OWN_PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _OWN_PROPOSALS,
    "DATALOADER.SAMPLER_TRAIN": f"{_OWN_ORDER}; TASKS.<name>.REPEAT_THRESHOLD of detection repeats rare categories",
    "DATALOADER.REPEAT_THRESHOLD": "each task of detection has its own: TASKS.<name>.REPEAT_THRESHOLD",
    "DATALOADER.REPEAT_SQRT": "TASKS.<name>.REPEAT_THRESHOLD always takes the square root, as LVIS does",
    "DATALOADER.RANDOM_SUBSET_RATIO": _OWN_ORDER,
    "DATALOADER.ASPECT_RATIO_GROUPING": "DATALOADER.BATCHES_BY_SHAPE groups by shape",
    "INPUT.MASK_FORMAT": "masks are always learned as bitmaps",
    "SOLVER.IMS_PER_BATCH": "each task has a batch size of its own: TASKS.<name>.IMS_PER_BATCH",
    "SOLVER.REFERENCE_WORLD_SIZE": "each task has a batch size of its own, whatever the number of processes",
    "SOLVER.MOMENTUM": "the optimizers are of AdamW's kind: SOLVER.BETAS",
    "SOLVER.NESTEROV": "the optimizers are of AdamW's kind: SOLVER.BETAS",
    "SOLVER.BIAS_LR_FACTOR": "biases learn at the rate of their part: SOLVER.BACKBONE_MULTIPLIER and its like",
    "TEST.AUG": "evaluation is at one size: INPUT.MIN_SIZE_TEST",
    "TEST.PRECISE_BN": "no statistics are gathered anew: MODEL.UNIPERCEIVER_V2.BACKBONE.NORM can be 'GN' or 'FrozenBN'",
    "TEST.EXPECTED_RESULTS": "results are by dataset: compare OUTPUT_DIR/results.json",
    "TEST.KEYPOINT_OKS_SIGMAS": "there are no keypoints",
}

# Keys of MODEL that UniPerceiverV2 reads. The others belong to upstream's models.
_READ_OF_MODEL = {
    *("META_ARCHITECTURE", "DEVICE", "WEIGHTS", "MASK_ON", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE.NAME"),
}
_MODEL_REASONS = {
    "BACKBONE.FREEZE_AT": "all of the backbone learns, at SOLVER.BACKBONE_MULTIPLIER times the rate, 0 for not at all",
    "LOAD_PROPOSALS": _OWN_PROPOSALS,
    "KEYPOINT_ON": "there are no keypoints",
}


def refuse_unused(cfg: CfgNode) -> None:
    """Refuse settings that nothing reads.

    Raises:
        UserError: such a setting differs from its default. The message says what to use instead.
    """
    for key, value, default in _pairs(cfg, get_cfg()):
        if _plain(value) != _plain(default) and (reason := _reason(cfg, key)):
            raise UserError(f"{key} is given, but nothing reads it: {reason}")


def _reason(cfg: CfgNode, key: str) -> str | None:
    section, _, rest = key.partition(".")
    if section == "MODEL":
        # Another architecture, or one of Detectron2's backbones, may read any key of MODEL.
        if cfg.MODEL.META_ARCHITECTURE != "UniPerceiverV2" or cfg.MODEL.BACKBONE.NAME != "build_huggingface_backbone":
            return None
        if rest in _READ_OF_MODEL:
            return None
        return _MODEL_REASONS.get(rest, "it is of other models; MODEL.UNIPERCEIVER_V2 has this one's settings")
    if key.startswith("SOLVER.CLIP_GRADIENTS") and cfg.SOLVER.OPTIMIZER == "TaskBalancedAdamW":
        return "SOLVER.OPTIMIZER 'TaskBalancedAdamW' normalises gradients, which leaves nothing to clip"
    return next((why for unused, why in UNUSED.items() if key == unused or key.startswith(f"{unused}.")), None)


def _pairs(node: CfgNode, defaults: CfgNode, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Each key of Detectron2's defaults, with its value in ``node`` and its default."""
    for name, default in defaults.items():
        if isinstance(default, CfgNode):
            yield from _pairs(node[name], default, f"{path}{name}.")
        else:
            yield f"{path}{name}", node[name], default


def _plain(value: object) -> object:
    """A value with lists in place of tuples, at every depth. YAML has no tuples, so a setting from a file has lists."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
