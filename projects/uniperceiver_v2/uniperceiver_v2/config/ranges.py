"""The ranges of settings that are single numbers or lists of numbers, and sizes that must divide each other."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode

from ..errors import UserError

_MODEL = "MODEL.UNIPERCEIVER_V2"
LARGEST_SIZE = 2**16  # of a width, or of a number of layers, queries or points
LARGEST_SIDE = 2**14  # pixels, of an image that is resized
MOST_WORKERS = 2**10

# {key: (least, most)} of a number, or of each number in a list.
RANGES: dict[str, tuple[float, float]] = {
    **{f"{_MODEL}.{key}": (1, LARGEST_SIZE) for key in ("EMBED_DIM", "ATTENTION_POOLS")},
    **{f"{_MODEL}.DECODER.{key}": (1, LARGEST_SIZE) for key in ("LAYERS", "HEADS", "FFN_DIM")},
    f"{_MODEL}.DECODER.EXPERTS": (0, LARGEST_SIZE),
    f"{_MODEL}.CANDIDATES.AT_ONCE": (0, 2**20),
    **{
        f"{_MODEL}.REGION.{key}": (1, LARGEST_SIZE)
        for key in ("DIM", "MASK_DIM", "HEADS", "POINTS", "FFN_DIM", "DECODER_LAYERS", "NUM_QUERIES")
    },
    f"{_MODEL}.REGION.ENCODER_LAYERS": (0, LARGEST_SIZE),
    f"{_MODEL}.REGION.FINE_DIM": (0, LARGEST_SIZE),
    f"{_MODEL}.REGION.DENOISING_QUERIES": (0, LARGEST_SIZE),
    f"{_MODEL}.REGION.BOX_NOISE": (0, 1),
    f"{_MODEL}.REGION.ANCHOR_SIZE": (1e-6, 1),
    f"{_MODEL}.TEMPERATURE": (1e-6, 1e6),
    **{
        f"{_MODEL}.CRITERION.{group}.{key}": (0, 1e9)
        for group in ("WEIGHTS", "COSTS")
        for key in ("OBJECTNESS", "BOX", "GIOU", "MASK", "DICE")
    },
    f"{_MODEL}.CRITERION.NUM_POINTS": (1, 2**20),
    f"{_MODEL}.CRITERION.OVERSAMPLING": (1, 100),
    f"{_MODEL}.CRITERION.UNCERTAIN_SHARE": (0, 1),
    f"{_MODEL}.CRITERION.ONE_TO_MANY": (0, LARGEST_SIZE),
    "MODEL.PIXEL_MEAN": (-1e6, 1e6),
    "MODEL.PIXEL_STD": (1e-6, 1e6),
    "INPUT.MIN_SIZE_TRAIN": (1, LARGEST_SIDE),
    "INPUT.MAX_SIZE_TRAIN": (1, LARGEST_SIDE),
    "INPUT.MIN_SIZE_TEST": (0, LARGEST_SIDE),
    "INPUT.MAX_SIZE_TEST": (0, LARGEST_SIDE),
    "DATALOADER.NUM_WORKERS": (0, MOST_WORKERS),
    "DATALOADER.MAX_CORRUPT_SHARE": (0, 1),
    "DATALOADER.BATCHES_BY_SHAPE": (0, 2**10),
    "DATALOADER.MAX_BAD_ANNOTATIONS": (0, 1),
    "SOLVER.BETAS": (0, 1 - 1e-9),
    "SOLVER.EPS": (0, 1),
    "SOLVER.GAMMA": (0, 1),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, 1e9),
    "SOLVER.WEIGHT_DECAY_NORM": (0, 1e9),
    **{f"SOLVER.{part}_MULTIPLIER": (0, 1e9) for part in ("BACKBONE", "TEXT_ENCODER", "DECODER")},
    "TEST.DETECTIONS_PER_IMAGE": (1, LARGEST_SIZE),
    "TEST.EVAL_PERIOD": (0, 2**40),
    "VIS_PERIOD": (0, 2**40),
}
# {key: the number of values in its list}.
_LENGTHS = {"MODEL.PIXEL_MEAN": 3, "MODEL.PIXEL_STD": 3, "SOLVER.BETAS": 2}
# {width: what has to divide it}. Attention splits it into heads, and a position encoding into sines and cosines of two
# coordinates.
_DIVISORS = {f"{_MODEL}.EMBED_DIM": f"{_MODEL}.DECODER.HEADS", f"{_MODEL}.REGION.DIM": f"{_MODEL}.REGION.HEADS"}


def check_ranges(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: for the first number that is out of its range. The message has its key.
    """
    for key, (least, most) in RANGES.items():
        value = _get(cfg, key)
        for number in _numbers(key, value):
            if not least <= number <= most:
                raise UserError(f"{key} must be at least {least:g} and at most {most:g}, not {number}")
    for width, heads in _DIVISORS.items():
        for divisor, what in ((_get(cfg, heads), heads), (4, "4")):
            if _get(cfg, width) % divisor:
                raise UserError(f"{width} ({_get(cfg, width)}) must be a multiple of {what} ({divisor})")
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT is 'RGB' or 'BGR', not {cfg.INPUT.FORMAT!r}")
    try:
        has_values = torch.device(cfg.MODEL.DEVICE).type != "meta"
    except RuntimeError:
        has_values = False
    if not has_values:
        raise UserError(f"MODEL.DEVICE is 'cpu' or 'cuda', not {cfg.MODEL.DEVICE!r}")


def _numbers(key: str, value: Any) -> Iterator[float]:
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) != _LENGTHS.get(key, len(numbers)) or not numbers:
        raise UserError(f"{key} needs {_LENGTHS.get(key, 'one or more')} numbers, not {value}")
    yield from numbers


def _get(cfg: CfgNode, key: str) -> Any:
    return reduce(lambda node, part: node[part], key.split("."), cfg)
