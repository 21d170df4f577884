"""What captions are compared with beside the references: the training set's own captions."""

from __future__ import annotations

import itertools

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm

from ..data import build_test_loader
from ..evaluation import CaptionBaselines
from ..meta_arch import UniPerceiverV2

MAX_IMAGES = 5000  # of each training set, over all ranks: enough for a near one, and soon encoded


def caption_baselines(cfg: CfgNode, model: UniPerceiverV2) -> CaptionBaselines | None:
    """The training images of all captioning tasks with their captions, images known by their mean global token.

    Returns:
        None where no task trains captioning, and on other ranks than the first.
    """
    tasks = [cfg.TASKS[name] for name in cfg.TASKS.NAMES if cfg.TASKS[name].KIND == "captioning"]
    features, captions = [], []
    with inference_context(model), torch.no_grad():
        for dataset in dict.fromkeys(name for task in tasks for name in task.DATASETS):
            loader = build_test_loader(cfg, dataset)
            samples = itertools.islice(itertools.chain.from_iterable(loader), MAX_IMAGES // comm.get_world_size())
            while batch := list(itertools.islice(samples, 16)):
                features.append(model.image_encoder.mean_global_token(model.preprocess(batch)).cpu())
                captions += [sample["captions"] for sample in batch]
    gathered = comm.gather((torch.cat(features), captions)) if features else []
    if not gathered or not comm.is_main_process():
        return None
    return CaptionBaselines(
        features=torch.cat([part for part, _ in gathered]),
        captions=[texts for _, part in gathered for texts in part],
        seed=max(cfg.SEED, 0),
    )
