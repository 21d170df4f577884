"""The effect of each cure for DETR's slow start: detection and classification without it, all else equal.

    python datasets/prepare_digit_scenes.py --development
    python projects/uniperceiver_v2/experiments/cures.py [--iterations 700] [--seeds 1] [--jobs 2] [--only ARM ...]

Trains and tests on the development tree. Its test scenes show handwriting that is held out from the training data, so
that no choice depends on the test set. The schedule is the small generalist's. Warm-up has the same number of
iterations as there. The rate's step comes after the same share of the run. Writes its table into docs/architecture.md.
study.py describes how runs are kept, resumed and divided among processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

import torch
from detectron2.data import DatasetCatalog
from study import Arm, Study

from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.data.datasets.builtin import datasets_root
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.decoder import UnifiedDecoder
from uniperceiver_v2.modeling.image_encoder import criterion

PREFIX = "development_"
TESTS = {"scenes": f"{PREFIX}digit_scenes_test", "digits": f"{PREFIX}digits_test"}
METRICS = {
    "box AP": ("scenes", "bbox", "AP"),
    "AP50": ("scenes", "bbox", "AP50"),
    "mask AP": ("scenes", "segm", "AP"),
    "digit top-1": ("digits", "classification", "top1"),
}


# Changes of a model without a cure. They are here and not settings, as no user needs them. ``mock.patch.object`` raises
# AttributeError for a name that does not exist, and tests/experiments/test_cures.py trains every arm.


@contextlib.contextmanager
def objectness_without_quality() -> Iterator[None]:
    """The target of a matched query is 1, independent of the quality of its box."""
    with_quality = criterion.quality_focal_loss

    def loss(logits: torch.Tensor, quality: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return with_quality(logits, (quality > 0).float(), weight)

    with mock.patch.object(criterion, "quality_focal_loss", loss):
        yield


def decoder_from_random() -> contextlib.AbstractContextManager:
    """The unified decoder keeps its random initialisation."""
    return mock.patch.object(UnifiedDecoder, "_start_as_pooling", lambda self: None)


NODE = "MODEL.UNIPERCEIVER_V2"
ARMS = {
    "none": Arm(),
    "alignment": Arm(settings={f"TASKS.{task}.ALIGNMENT_WEIGHT": 0.0 for task in TESTS}),
    "denoising": Arm(settings={f"{NODE}.REGION.DENOISING_QUERIES": 0}),
    "masks in boxes": Arm(settings={f"{NODE}.REGION.MASKS_IN_BOXES": False}),
    "quality": Arm(replaced=objectness_without_quality),
    "averaging": Arm(settings={"SOLVER.WEIGHT_AVERAGING": 0.0}),
    "pooling": Arm(replaced=decoder_from_random),
    "one-to-many": Arm(settings={f"{NODE}.CRITERION.ONE_TO_MANY": 1}),
    "constant rate": Arm(settings={"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}),
}
ROWS = {
    "none": "none",
    "alignment loss": "alignment",
    "denoising": "denoising",
    "masks in boxes": "masks in boxes",
    "IoU-aware objectness": "quality",
    "weight averaging": "averaging",
    "decoder as pooling (random start)": "pooling",
    "one-to-many (one token an object)": "one-to-many",
    "constant rate with one step (half a cosine instead)": "constant rate",
}


def register_development() -> None:
    """Register the development tree's datasets under names with a prefix, unless they are registered already."""
    if TESTS["scenes"] not in DatasetCatalog.list():
        root = os.path.join(datasets_root(), "development", "digit_scenes")
        register_digit_scenes(root, prefix=PREFIX)


STUDY = Study(
    __file__,
    arms=ARMS,
    tests=TESTS,
    metrics=METRICS,
    tables={"": {row: (arm,) for row, arm in ROWS.items()}},
    document=REPOSITORY / "docs" / "architecture.md",
    first_column="left out",
    prefix=PREFIX,
    split="development",
    prepare=register_development,
)


if __name__ == "__main__":
    STUDY.main()
