"""Chooses the settings of a configuration from what was seen of the data."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..config import load_config
from ..data.datasets.custom import FORMATS
from ..errors import UserError
from .looking import TASKS, Seen

EPOCHS = 40  # in training, within the limits below
FEWEST, MOST = 400, 20000  # iterations
TEST_SHARE = 0.2  # of a dataset without a test set

# Settings of a task by its kind, and how large its steps are, as a multiple of the rate. Both are those with which the
# tiny configuration learns well.
_SETTINGS: dict[str, dict[str, Any]] = {
    "detection": {"IMS_PER_BATCH": 8, "CATEGORY_WEIGHT": 4.0, "ALIGNMENT_WEIGHT": 30.0},
    "grounding": {"IMS_PER_BATCH": 8, "PHRASE_WEIGHT": 4.0, "REFERENT_WEIGHT": 4.0, "ALIGNMENT_WEIGHT": 20.0},
    "classification": {"IMS_PER_BATCH": 16, "CROP_SCALE": [0.5, 1.0]},
    "captioning": {"IMS_PER_BATCH": 8, "CAPTIONS_PER_IMAGE": 5},
    "language_modelling": {"IMS_PER_BATCH": 32, "MASKED_SHARE": 0.3},
}
# Of models that have a map of centres.
_WITH_CENTRES: dict[str, dict[str, Any]] = {
    "detection": {"CENTRED_STATES": True, "CENTRE_WEIGHT": 20.0},
    "grounding": {"CENTRE_WEIGHT": 10.0},
}
_STEPS = {"detection": 11.0, "grounding": 12.0, "classification": 4.0, "captioning": 4.0, "language_modelling": 4.0}


class Start(NamedTuple):
    """What training starts from: the configuration that gives the model, a checkpoint of it, and the directory of its
    text encoder; "" for random weights, and for the configuration's own text encoder."""

    base: Path
    weights: str = ""
    text_encoder: str = ""


def configuration(seen: Sequence[Seen], start: Start, output: Path) -> str:
    """The text of a configuration for these datasets, which is to be written to ``output``.

    Raises:
        UserError: there is nothing to train on, or the configuration of the model cannot be used.
    """
    custom, tasks, tested = _tasks_of(seen)
    settings: dict[str, Any] = {"_BASE_": shown_path(start.base, output.parent)}
    reasons: dict[str, str] = {}
    settings["DATASETS"] = {"CUSTOM": custom, "TEST": tested}
    model = load_config(str(start.base), training=False, datasets=False).MODEL.UNIPERCEIVER_V2
    # A single category has nothing to be told from.
    alone = any(d.evaluator_type in ("coco", "lvis") and len(d.counts()) < 2 for d in seen)
    if model.REGION.FINE_DIM:
        for node in tasks.values():
            if node["KIND"] != "detection" or not alone:
                node.update(_WITH_CENTRES.get(node["KIND"], {}))
    settings["TASKS"] = {"NAMES": list(tasks), **tasks}
    _choose_model(seen, start, model, settings, reasons)
    _choose_iterations(seen, tasks, bool(start.weights), settings, reasons)
    settings["OUTPUT_DIR"] = f"output/{output.stem}"
    return _as_yaml(settings, reasons)


def _tasks_of(seen: Sequence[Seen]) -> tuple[dict, dict, list[str]]:
    """Nodes of DATASETS.CUSTOM and of TASKS, and the names for DATASETS.TEST, of which there is at least one.

    Raises:
        UserError: there are test sets only.
    """
    custom: dict[str, dict] = {}
    tasks: dict[str, dict] = {}
    tested: list[str] = []
    with_tests = {d.evaluator_type for d in seen if d.held_out}
    kinds = list(TASKS)
    # BEST_METRIC is of the first test set: rather of objects than of captions, and rather of "val" than of "test".
    for dataset in sorted(seen, key=lambda d: (kinds.index(d.evaluator_type), d.found.split == "test")):
        task, kind, _ = TASKS[dataset.evaluator_type]
        node, learned = dict(dataset.found.node), dataset.name
        if dataset.broken:
            node["LEFT_OUT"] = [shown_path(Path(path), Path.cwd()) for path in dataset.broken]
        if dataset.held_out:
            custom[dataset.name] = node
            tested.append(dataset.name)
            continue
        if dataset.evaluator_type in with_tests:
            custom[learned] = node
        else:
            stem = dataset.name.removesuffix("_train")
            learned, test = f"{stem}_train", f"{stem}_test"
            custom[learned] = {**node, "PART": "train", "TEST_SHARE": TEST_SHARE}
            custom[test] = {**node, "PART": "test", "TEST_SHARE": TEST_SHARE}
            tested.append(test)
        tasks.setdefault(task, {"KIND": kind, "DATASETS": [], **_SETTINGS[kind]})["DATASETS"].append(learned)
    if not tasks:
        raise UserError("there are test sets only: nothing to train on")
    for node in tasks.values():
        # Tasks are drawn equally often. A step is ω_k / s_k times the rate, where s_k is the share of a task's draws.
        node["GRADIENT_WEIGHT"] = round(_STEPS[node["KIND"]] / len(tasks), 2)
    return custom, tasks, tested


def _choose_model(seen: Sequence[Seen], start: Start, node: CfgNode, settings: dict, reasons: dict[str, str]) -> None:
    """Of the ``node`` MODEL.UNIPERCEIVER_V2 of the configuration that training starts from, what fits the data."""
    sizes = np.array([size for dataset in seen for size in dataset.sizes], dtype=np.float64).reshape(-1, 2)
    with_objects = [d for d in seen if d.evaluator_type in ("coco", "lvis", "grounding")]
    annotations = [(a, r) for d in with_objects for r in d.records for a in r["annotations"]]
    model: dict[str, Any] = {"WEIGHTS": start.weights} if start.weights else {}
    own: dict[str, Any] = {"TEXT_ENCODER": {"PATH": start.text_encoder}} if start.text_encoder else {}
    if with_objects:
        model["MASK_ON"] = all(a.get("segmentation") for a, _ in annotations if not a.get("iscrowd", 0))
        reasons["MASK_ON"] = "whether every object has an outline"
        region = {"ANCHOR_SIZE": _anchor(annotations)}
        reasons["ANCHOR_SIZE"] = "side of the smaller objects, as a share of their picture"
        most = max(len(r["annotations"]) for d in with_objects for r in d.records)
        if most * 1.25 > node.REGION.NUM_QUERIES:
            region["NUM_QUERIES"] = int(np.ceil(most * 1.25 / 10) * 10)
            reasons["NUM_QUERIES"] = f"the fullest picture has {most} objects"
        own["REGION"] = region
    if own:
        model["UNIPERCEIVER_V2"] = own
    if model:
        settings["MODEL"] = model
    if len(sizes):
        short, long = sizes.min(1), sizes.max(1)
        side = _side(np.median(short), 480)
        settings["INPUT"] = {
            "MIN_SIZE_TRAIN": [side],
            "MIN_SIZE_TEST": side,
            "MAX_SIZE_TRAIN": int(np.ceil(side * min((long / short).max(), 4) / 32) * 32),
            "RANDOM_FLIP": "horizontal",
        }
        settings["INPUT"]["MAX_SIZE_TEST"] = settings["INPUT"]["MAX_SIZE_TRAIN"]
        reasons["MIN_SIZE_TRAIN"] = f"the median picture has a shorter side of {np.median(short):.0f} pixels"
        reasons["RANDOM_FLIP"] = '"none" where left and right matter, as for digits and letters'
    for task in settings["TASKS"].values():
        if isinstance(task, dict) and task["KIND"] == "classification":
            shown = [size for d in seen if d.evaluator_type == "imagenet" for size in d.sizes]
            task["IMAGE_SIZE"] = _side(np.median(np.array(shown).min(1)), 224) if shown else 224


def _anchor(annotations: Sequence[tuple[dict, dict]]) -> float:
    sides = [(max(a["bbox"][2], 1) * max(a["bbox"][3], 1) / (r["height"] * r["width"])) ** 0.5 for a, r in annotations]
    return round(float(np.clip(np.quantile(sides, 0.25) if sides else 0.1, 0.02, 0.4)), 3)


def _side(pixels: float, most: int) -> int:
    return int(np.clip(round(pixels / 32) * 32, 32, most // 32 * 32))


def _choose_iterations(
    seen: Sequence[Seen], tasks: dict, is_tuned: bool, settings: dict, reasons: dict[str, str]
) -> None:
    batches = sum(
        len(d.records) * (1 - TEST_SHARE) / tasks[TASKS[d.evaluator_type][0]]["IMS_PER_BATCH"]
        for d in seen
        if not d.held_out
    )
    most = int(np.clip(round(EPOCHS * batches, -2), FEWEST, MOST))
    period = max(most // 10, 1)
    settings["SOLVER"] = {
        "MAX_ITER": most,
        "STEPS": [int(most * 0.8)],
        "GAMMA": 0.1,
        "WARMUP_ITERS": min(100, most // 10),
        "CHECKPOINT_PERIOD": period,
        "CHECKPOINTS_KEPT": 2,
        "EARLY_STOPPING": 5,
    }
    reasons["MAX_ITER"] = f"about {EPOCHS} times through the data, at least {FEWEST} and at most {MOST} iterations"
    reasons["EARLY_STOPPING"] = "evaluations in a row without a better one"
    if is_tuned:
        settings["SOLVER"]["BASE_LR"] = 0.0002
        reasons["BASE_LR"] = "lower than from random weights"
    first = settings["DATASETS"]["TEST"][0]
    evaluated_as = FORMATS[settings["DATASETS"]["CUSTOM"][first]["FORMAT"]].evaluated_as[0]
    settings["TEST"] = {"EVAL_PERIOD": period, "BEST_METRIC": f"{first}/{TASKS[evaluated_as][2]}"}
    reasons["BEST_METRIC"] = "model_best.pth has the weights with its best value"


def _as_yaml(settings: dict, reasons: dict[str, str]) -> str:
    """Nested keys as blocks, datasets and tasks on a line each, and reasons as comments."""
    lines: list[str] = []

    def write(node: dict, indent: int, inline: bool) -> None:
        for key, value in node.items():
            comment = f"  # {reasons[key]}" if key in reasons else ""
            if isinstance(value, dict) and not inline:
                lines.append(f"{' ' * indent}{key}:")
                write(value, indent + 2, key in ("CUSTOM", "TASKS"))
            else:
                lines.append(f"{' ' * indent}{key}: {_inline(value)}{comment}")

    write(settings, 0, False)
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def shown_path(path: Path, folder: Path) -> str:
    """A path as seen from a folder, where both are in the working folder. Otherwise the whole path."""
    here = Path.cwd().resolve()
    path, folder = path.resolve(), folder.resolve()
    if here in path.parents and (folder == here or here in folder.parents):
        return os.path.relpath(path, folder)
    return str(path)
