"""What each cure for DETR's slow start gives: detection and classification without it, everything else alike.

    python datasets/prepare_digit_scenes.py --development
    python projects/uniperceiver_v2/benchmarks/cures.py [--iterations 700] [--seeds 1] [--only NAME ...]

Trains on the development tree, where scenes for testing show held out training handwriting: nothing is chosen by the
test set. A run that has its results is not repeated, so that the study can be stopped and taken up again. Prints one
Markdown table; each run leaves its log and metrics in output/cures/<cure>_<seed>/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.engine import default_setup

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.modeling.decoder import UnifiedDecoder
from uniperceiver_v2.modeling.image_encoder import criterion, tokens
from uniperceiver_v2.tasks import detection

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
OUTPUT = Path("output/cures")
PREFIX = "development_"
TEST_SETS = (f"{PREFIX}digit_scenes_test", f"{PREFIX}digits_test")
METRICS = {
    "box AP": (TEST_SETS[0], "bbox", "AP"),
    "AP50": (TEST_SETS[0], "bbox", "AP50"),
    "mask AP": (TEST_SETS[0], "segm", "AP"),
    "top-1": (TEST_SETS[1], "classification", "top1"),
}


# What a model without a cure does instead. No user needs these as settings, so they live here.


@contextlib.contextmanager
def objectness_without_quality() -> Iterator[None]:
    """A matched query's target is 1, whatever its box is worth."""
    with_quality = criterion.quality_focal_loss

    def loss(logits: torch.Tensor, quality: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return with_quality(logits, (quality > 0).float(), weight)

    with mock.patch.object(criterion, "quality_focal_loss", loss):
        yield


@contextlib.contextmanager
def masks_everywhere() -> Iterator[None]:
    """Masks are learned, compared and predicted over the whole image."""
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0])
    with contextlib.ExitStack() as stack:
        for place, name, replacement in (
            (criterion, "mask_windows", lambda matches, targets: whole.expand(len(matches.image), 4)),
            (criterion, "contains", lambda boxes, points: torch.ones((), dtype=torch.bool)),
            (tokens, "contains", lambda boxes, points: torch.ones((), dtype=torch.bool)),
            (detection, "box_interiors", lambda boxes, size: torch.ones(len(boxes), *size, dtype=torch.bool)),
        ):
            stack.enter_context(mock.patch.object(place, name, replacement))
        yield


def decoder_from_random() -> contextlib.AbstractContextManager:
    """The unified decoder keeps its random start."""
    return mock.patch.object(UnifiedDecoder, "_start_as_pooling", lambda self: None)


NODE = "MODEL.UNIPERCEIVER_V2"
# By the cure left out: settings, and what is replaced in the code.
CURES: dict[str, tuple[list[str], Callable[[], contextlib.AbstractContextManager]]] = {
    "none": ([], contextlib.nullcontext),
    "alignment": (
        ["TASKS.scenes.ALIGNMENT_WEIGHT", "0.0", "TASKS.digits.ALIGNMENT_WEIGHT", "0.0"],
        contextlib.nullcontext,
    ),
    "denoising": ([f"{NODE}.REGION.DENOISING_GROUPS", "0"], contextlib.nullcontext),
    "one-to-many": ([f"{NODE}.CRITERION.ONE_TO_MANY", "1"], contextlib.nullcontext),
    "masks in boxes": ([], masks_everywhere),
    "IoU-aware objectness": ([], objectness_without_quality),
    "weight averaging": (["SOLVER.WEIGHT_AVERAGING", "0.0"], contextlib.nullcontext),
    "one-cycle rate": (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()"], contextlib.nullcontext),
    "decoder's delay": (["SOLVER.DECODER_DELAY", "0"], contextlib.nullcontext),
    "decoder as pooling": ([], decoder_from_random),
}


def train(name: str, seed: int, iterations: int) -> dict[str, Any]:
    """Results by dataset of the model without a cure."""
    folder = OUTPUT / f"{name.replace(' ', '_')}_{seed}"
    finished = folder / "results.json"
    if finished.exists():
        return json.loads(finished.read_text())
    settings, replaced = CURES[name]
    overrides = ["SEED", str(seed), "SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(folder)]
    overrides += ["TASKS.NAMES", "['scenes', 'digits']", "DATASETS.TEST", str(TEST_SETS)]
    overrides += ["TASKS.scenes.DATASETS", f"['{PREFIX}digit_scenes_train']"]
    overrides += ["TASKS.digits.DATASETS", f"['{PREFIX}digits_train']", "SOLVER.CHECKPOINT_PERIOD", str(10**6)]
    cfg = load_config(str(CONFIG), [*overrides, *settings])
    default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
    with replaced():
        results = UniPerceiverTrainer(cfg).train()
    finished.write_text(json.dumps(results, indent=1))
    return results


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """A line of the table: the mean over seeds, and half the range where there are several."""
    cells = []
    for dataset, task, metric in METRICS.values():
        values = torch.tensor([run[dataset][task][metric] for run in runs])
        spread = f" ± {(values.max() - values.min()).item() / 2:.1f}" if len(runs) > 1 else ""
        cells.append(f"{values.mean().item():.1f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=1, help="of the whole model; runs without a cure have one")
    parser.add_argument("--only", nargs="+", choices=list(CURES), default=list(CURES), metavar="CURE")
    args = parser.parse_args()
    root = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "development", "digit_scenes")
    register_digit_scenes(root, prefix=PREFIX)
    lines = [f"| left out | {' | '.join(METRICS)} |", "|---|" + "---:|" * len(METRICS)]
    for name in args.only:
        seeds = range(args.seeds if name == "none" else 1)
        lines.append(row(name, [train(name, seed, args.iterations) for seed in seeds]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
