"""Captions of the training set, as baselines for predicted captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import Tensor, nn

from ..data import training_images_of_captions
from ..errors import UnreadableImage, UserError
from ..evaluation import CaptionBaselines

logger = logging.getLogger(__name__)

MAX_IMAGES = 5000  # images drawn from all training sets: enough for a similar one to each test image, and few to encode
BATCH_SIZE = 16


def caption_baselines(cfg: CfgNode, model: nn.Module) -> CaptionBaselines | None:
    """Training images of all captioning tasks with their captions. An image's feature is its mean global token.

    The drawn images depend on ``cfg.SEED`` only. Images that cannot be read are left out.

    Args:
        cfg: the settings of a run.
        model: a UniPerceiverV2, which may be wrapped in DistributedDataParallel.

    Returns:
        the baselines on the first rank, None on the others. Also None if no task trains captioning, or if its training
        data is missing, as on a machine that only evaluates.
    """
    model = getattr(model, "module", model)
    if all(cfg.TASKS[name].KIND != "captioning" for name in cfg.TASKS.NAMES):
        return None
    try:
        records, mapper = training_images_of_captions(cfg)
    except UserError as error:  # the same on every rank
        logger.warning("captions are reported without the training set's own: %s", error)
        return None
    seed = max(cfg.SEED, 0)
    drawn = np.random.default_rng(seed).permutation(len(records))[:MAX_IMAGES]
    share = drawn[comm.get_rank() :: comm.get_world_size()]
    with inference_context(model), torch.no_grad():
        found = list(_encode(model, lambda index: mapper(records[index]), share))
    gathered = [pair for part in comm.gather(found) for pair in part]
    if not gathered or not comm.is_main_process():
        return None
    features, captions = zip(*gathered)
    return CaptionBaselines(torch.stack(features), captions, seed)


def _encode(
    model: nn.Module, sample_at: Callable[[int], dict], indices: np.ndarray
) -> Iterator[tuple[Tensor, list[str]]]:
    """The feature [d] and the captions of each readable image."""
    batch: list[dict] = []
    for index in indices.tolist():
        try:
            batch.append(sample_at(index))
        except UnreadableImage as error:
            logger.warning("left out of what captions are compared with: %s", error)
        if len(batch) == BATCH_SIZE:
            yield from _features(model, batch)
            batch = []
    if batch:
        yield from _features(model, batch)


def _features(model: nn.Module, batch: list[dict]) -> Iterator[tuple[Tensor, list[str]]]:
    features = model.image_encoder.mean_global_token(model.preprocess(batch)).cpu()
    for feature, sample in zip(features, batch, strict=True):
        yield feature.clone(), sample["captions"]  # a copy, as a view would send the whole batch to the other rank
