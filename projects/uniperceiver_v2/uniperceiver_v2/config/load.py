"""The settings that Uni-Perceiver v2 adds to Detectron2's, and how a run's settings are read and checked.

A run is described by a YAML file (with ``_BASE_`` as in Detectron2) and ``KEY VALUE`` pairs. Both are
checked key by key as they are merged, so that a slip of the pen ends the run at once and names the key
that was meant.
"""

import contextlib
import copy
import logging
import math
from ast import literal_eval
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from ..errors import UserError, nearest
from .checks import check_config

logger = logging.getLogger(__name__)

COMMON_TASK_SETTINGS: dict[str, Any] = {
    "KIND": "",
    "DATASETS": [],
    # Images (or texts) of one iteration, over all ranks.
    "IMS_PER_BATCH": 16,
    # s_k of the paper's equation (7); the ratios of all tasks are scaled to sum to 1.
    "SAMPLING_RATIO": 1.0,
    # w_k of equation (7). Task-balanced normalisation cancels it, AdamW does not.
    "LOSS_WEIGHT": 1.0,
    # ω_k of Task-Balanced Gradient Normalization: the norm of the task's gradient after normalisation.
    "GRADIENT_WEIGHT": 1.0,
}

# What a task node may hold beside the common settings, by its KIND. A new kind of task adds its line here.
TASK_SETTINGS: dict[str, dict[str, Any]] = {
    "detection": {"CATEGORY_WEIGHT": 2.0, "ALIGNMENT_WEIGHT": 5.0, "PROMPT": "{}"},
    "classification": {
        "LABEL_SMOOTHING": 0.0,
        "ALIGNMENT_WEIGHT": 1.0,
        "IMAGE_SIZE": 224,
        "CROP_SCALE": [0.08, 1.0],
        "FLIP": True,
        "PROMPT": "{}",
    },
    "captioning": {
        # Captions of an image in a training step: it is encoded once for all of them.
        "CAPTIONS_PER_IMAGE": 1,
        # Words beside the batch's own that a training step compares with; 0 for the whole vocabulary.
        "VOCABULARY_SAMPLE": 0,
        "LABEL_SMOOTHING": 0.0,
        "BEAM_SIZE": 3,
        "LENGTH_PENALTY": 1.0,  # a caption's log-likelihood is divided by its length to this power
        "MAX_LENGTH": 40,  # of generated captions, in tokens
    },
    "retrieval": {
        "GATHER_FEATURES": True,  # candidates from all ranks; otherwise from this rank's share of the batch alone
    },
    "language_modelling": {"MASKED_SHARE": 0.15, "VOCABULARY_SAMPLE": 0},
}


def add_uniperceiver_v2_config(cfg: CN) -> None:
    """Add this project's keys to ``cfg`` in place, beside Detectron2's own."""
    _add_model_config(cfg)

    # Tasks are nodes of the user's own naming, so that the command line can override one number of one task.
    cfg.TASKS = CN(new_allowed=True)
    cfg.TASKS.NAMES = []

    cfg.SOLVER.OPTIMIZER = "TaskBalancedAdamW"
    # "unmixed": the batch of one task an iteration. "mixed": those of all tasks, their losses weighed by s_k.
    cfg.SOLVER.SAMPLING = "unmixed"
    # Parts that an iteration's batch is worked through in, one after the other, to save memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Detectron2's SOLVER.AMP.ENABLED turns autocast on: "bfloat16", or "float16" with scaled gradients.
    cfg.SOLVER.AMP.PRECISION = "bfloat16"
    # Steps whose loss or gradient is not finite are skipped and counted; after so many in a row training stops.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    cfg.SOLVER.BETAS = [0.9, 0.999]
    cfg.SOLVER.EPS = 1e-8
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 1.0
    cfg.SOLVER.DECODER_MULTIPLIER = 1.0  # of the unified decoder
    cfg.SOLVER.GATE_MULTIPLIER = 1.0  # of the routers of its Conditional MoE, on top of the decoder's
    # Iterations for which the unified decoder stays as it starts, until what it is given tells candidates apart.
    cfg.SOLVER.DECODER_DELAY = 0
    # Decay of the exponential average of the weights that is evaluated and saved as "model"; 0 turns it off.
    cfg.SOLVER.WEIGHT_AVERAGING = 0.0

    # Unreadable images are skipped and counted; past this share of those seen, training stops.
    cfg.DATALOADER.MAX_CORRUPT_SHARE = 0.01


def _add_model_config(cfg: CN) -> None:
    """Sizes as the paper and Mask DINO have them."""
    cfg.MODEL.UNIPERCEIVER_V2 = node = CN()
    node.EMBED_DIM = 768  # d, the width of the unified decoder and of all that enters it
    node.ATTENTION_POOLS = 8  # M' of equation (3)
    node.TEMPERATURE = 0.07  # τ at the start
    # Parts that compute their activations twice instead of keeping them: "backbone", "region_network", "decoder".
    node.ACTIVATION_CHECKPOINTING = []

    # A Hugging Face backbone: a directory with its configuration (and weights), or the configuration's fields.
    node.BACKBONE = CN()
    node.BACKBONE.PATH = ""
    node.BACKBONE.CONFIG = CN(new_allowed=True)
    node.BACKBONE.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    node.BACKBONE.NORM = ""  # what replaces batch normalisation: "" (nothing), "FrozenBN" or "GN"

    node.TEXT_ENCODER = CN()
    node.TEXT_ENCODER.PATH = ""  # directory of a Hugging Face text encoder and its tokenizer

    node.DECODER = CN()
    node.DECODER.LAYERS = 6
    node.DECODER.HEADS = 12
    node.DECODER.FFN_DIM = 3072  # width of a feed-forward network, or of each of its experts
    # Experts of a feed-forward network, and how many of them a token goes through; no experts: a dense network.
    node.DECODER.EXPERTS = 8
    node.DECODER.ACTIVE_EXPERTS = 2
    node.DECODER.COMPILE = False  # its layers by torch.compile

    node.REGION = CN()
    node.REGION.DIM = 256
    node.REGION.MASK_DIM = 256  # width of the pixel embeddings
    node.REGION.HEADS = 8
    node.REGION.POINTS = 4  # sampling points of a head at a scale
    node.REGION.FFN_DIM = 2048
    node.REGION.ENCODER_LAYERS = 6
    node.REGION.DECODER_LAYERS = 9
    node.REGION.NUM_QUERIES = 300  # O
    node.REGION.ANCHOR_SIZE = 0.05  # side of a token's anchor at the finest scale, as a share of the image
    node.REGION.DENOISING_GROUPS = 5
    node.REGION.BOX_NOISE = 0.4

    node.CRITERION = CN()
    node.CRITERION.WEIGHTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.COSTS = CN({"OBJECTNESS": 4.0, "BOX": 5.0, "GIOU": 2.0, "MASK": 5.0, "DICE": 5.0})
    node.CRITERION.NUM_POINTS = 12544  # of the mask losses, for each mask
    node.CRITERION.OVERSAMPLING = 3.0
    node.CRITERION.UNCERTAIN_SHARE = 0.75
    node.CRITERION.ONE_TO_MANY = 9  # tokens of the encoder that answer for an object


def load_config(
    config_file: str = "", overrides: Sequence[str] = (), *, training: bool = True, world_size: int = 1
) -> CN:
    """Read, merge and check the settings of a run.

    Args:
        config_file: YAML file, may name another one as ``_BASE_``; empty for the defaults.
        overrides: ``["KEY", "VALUE", ...]`` as on the command line.
        training: whether the tasks will be trained, so that there has to be one.
        world_size: the number of processes among which a task's batch is divided.

    Returns:
        the frozen configuration, each node of ``TASKS`` filled up with its kind's defaults.

    Raises:
        UserError: unknown key, task, kind or dataset, a value of the wrong type or outside its range.
    """
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    from_file = _read_yaml(config_file) if config_file else {}
    from_command_line = _nest(overrides)
    # A task's kind decides which keys it may have, wherever they are given.
    kinds = _task_kinds(_overlay(from_file, from_command_line).get("TASKS"))
    for name, kind in kinds.items():
        cfg.TASKS[name] = CN(task_defaults(name, kind))
    for settings, where in ((from_file, f"in {config_file}"), (from_command_line, "on the command line")):
        _merge(settings, cfg, (), where)
    _fall_back_to_cpu(cfg)
    check_config(cfg, training=training, world_size=world_size)
    cfg.freeze()
    return cfg


def task_defaults(name: str, kind: str) -> dict[str, Any]:
    """All settings of a task of this kind with their defaults.

    Raises:
        UserError: no such kind.
    """
    if kind not in TASK_SETTINGS:
        raise UserError(f"TASKS.{name}.KIND: unknown kind of task '{kind}'{nearest(kind, TASK_SETTINGS)}")
    return copy.deepcopy({**COMMON_TASK_SETTINGS, "KIND": kind, **TASK_SETTINGS[kind]})


def sampling_ratios(cfg: CN) -> dict[str, float]:
    """s_k of every task in ``TASKS.NAMES``, in that order, scaled to sum to 1."""
    ratios = {name: float(cfg.TASKS[name].SAMPLING_RATIO) for name in cfg.TASKS.NAMES}
    total = math.fsum(ratios.values())
    return {name: ratio / total for name, ratio in ratios.items()}


def _read_yaml(path: str) -> dict[str, Any]:
    if not PathManager.isfile(path):
        raise UserError(f"configuration file not found: {path}")
    try:
        # Without unsafe tags: a configuration from elsewhere must not be able to run code.
        settings = CN.load_yaml_with_base(path, allow_unsafe=False)
    except (yaml.YAMLError, OSError, AttributeError, TypeError, AssertionError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} cannot be read as a configuration: it holds no KEY: VALUE pairs")
    return settings


def _nest(overrides: Sequence[str]) -> dict[str, Any]:
    """``["A.B", "1", ...]`` as ``{"A": {"B": "1"}, ...}``."""
    for option in overrides:
        if option.startswith("--"):
            raise UserError(f"the option {option} must stand before the KEY VALUE pairs")
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs, but '{overrides[-1]}' has no value")
    nested: dict[str, Any] = {}
    for key, value in zip(overrides[0::2], overrides[1::2]):
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"on the command line, '{key}' and a key above it are both given a value")
        node[last] = value
    return nested


def _overlay(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return {**base, **{key: _overlay(base.get(key), value) for key, value in top.items()}}


def _task_kinds(tasks: Any) -> dict[str, str]:
    """KIND of each task node."""
    if not isinstance(tasks, dict):
        return {}
    kinds = {}
    for name, node in tasks.items():
        if name == "NAMES" or not isinstance(node, dict):
            continue
        if "KIND" not in node:
            # Either a task without a kind, or the name of one that exists with a slip in it.
            with_kind = [other for other, value in tasks.items() if isinstance(value, dict) and "KIND" in value]
            raise UserError(f"the task 'TASKS.{name}' has no KIND{nearest(name, with_kind)}")
        kinds[name] = str(node["KIND"])
    return kinds


def _merge(settings: dict[str, Any], node: CN, path: tuple[str, ...], where: str) -> None:
    for key, value in settings.items():
        full_key = ".".join((*path, str(key)))
        if key not in node:
            if node.is_new_allowed() and path != ("TASKS",):
                node[key] = CN(value, new_allowed=True) if isinstance(value, dict) else value
                continue
            raise UserError(f"unknown configuration key '{full_key}' {where}{_nearest_key(str(key), node, path)}")
        if isinstance(node[key], CN) != isinstance(value, dict):
            expected = "a section of keys" if isinstance(node[key], CN) else "a value, not a section"
            raise UserError(f"configuration key '{full_key}' {where} expects {expected}")
        if isinstance(value, dict):
            _merge(value, node[key], (*path, key), where)
        else:
            node[key] = _coerce(value, node[key], full_key, where)


def _nearest_key(key: str, node: CN, path: tuple[str, ...]) -> str:
    """The closest key of the same section; else where in the whole configuration that very name stands."""
    hint = nearest(key, [str(name) for name in node])
    if "did you mean" in hint:
        prefix = "".join(f"{part}." for part in path)
        return hint.replace("did you mean '", f"did you mean '{prefix}")
    defaults = get_cfg()
    add_uniperceiver_v2_config(defaults)
    elsewhere = [full_key for full_key in _leaves(defaults) if full_key.rsplit(".", 1)[-1] == key]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else hint


def _leaves(node: CN, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield path + key
        if isinstance(value, CN):
            yield from _leaves(value, f"{path}{key}.")


def _coerce(value: Any, default: Any, full_key: str, where: str) -> Any:
    """``value`` as the type of ``default``, by yacs' rules and two more: an integer will do for a float, and
    a text stays one where a text is expected, even if it looks like a number."""
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):
            value = literal_eval(value)
    if isinstance(value, type(default)) and not (isinstance(value, bool) and not isinstance(default, bool)):
        return value
    if default is None or value is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(value)
    raise UserError(
        f"configuration key '{full_key}' {where} expects {type(default).__name__}, such as {default!r}, not {value!r}"
    )


def _fall_back_to_cpu(cfg: CN) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no CUDA device is available: MODEL.DEVICE is set to cpu")
        cfg.MODEL.DEVICE = "cpu"
