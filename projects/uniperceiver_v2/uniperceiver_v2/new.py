"""Looks at a folder of data and writes a configuration to start from.

    python -m uniperceiver_v2.new my_data/ [--output my_data.yaml] [--weights CHECKPOINT] [--base CONFIG]

It says what it saw: datasets with their formats, pictures, categories with counts, and broken files. Sizes, anchors,
iterations and the split into training and test follow from the data. The comments of the configuration say how.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.data import MetadataCatalog

from . import meta_arch  # noqa: F401  (fills Detectron2's registries)
from .config import load_config
from .data import load_dataset, register_custom_datasets
from .data.datasets.custom import FORMATS
from .data.datasets.found import Found, find_datasets
from .errors import UnreadableImage, UserError
from .files import TINY_CONFIG, write_atomically
from .reading import read_image

EPOCHS = 40  # in training, within the limits below
FEWEST, MOST = 400, 20000  # iterations
TEST_SHARE = 0.2  # of a dataset without a test set
LISTED = 20  # categories and broken files that are printed

# By "evaluator_type": the name of the task, its kind, and the metric that the best checkpoint is chosen by.
_TASKS = {
    "coco": ("objects", "detection", "bbox/AP"),
    "lvis": ("objects", "detection", "bbox/AP"),
    "imagenet": ("classes", "classification", "classification/top1"),
    "coco_caption": ("captions", "captioning", "caption/CIDEr"),
    "grounding": ("phrases", "grounding", "grounding/Acc@0.5"),
    "corpus": ("texts", "language_modelling", "language_modelling/accuracy"),
}
# Settings of a task. Those of detection are the tiny configuration's.
_SETTINGS = {
    "detection": {"IMS_PER_BATCH": 8, "GRADIENT_WEIGHT": 6.0, "CATEGORY_WEIGHT": 4.0, "ALIGNMENT_WEIGHT": 20.0},
    "classification": {"IMS_PER_BATCH": 16, "CROP_SCALE": [0.5, 1.0]},
    "captioning": {"IMS_PER_BATCH": 8},
    "grounding": {"IMS_PER_BATCH": 8},
    "language_modelling": {"IMS_PER_BATCH": 32},
}


@dataclass
class Seen:
    """What was seen of a dataset."""

    name: str
    found: Found
    records: list[dict]
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of readable pictures
    broken: list[str] = field(default_factory=list)

    @property
    def evaluator_type(self) -> str:
        return MetadataCatalog.get(self.name).evaluator_type

    def counts(self) -> Counter:
        """Objects of each category, or pictures of each class."""
        names = MetadataCatalog.get(self.name).get("thing_classes") or []
        labels = (r["label"] for r in self.records if "label" in r)
        objects = (a["category_id"] for r in self.records for a in r.get("annotations", ()))
        counts = Counter(dict.fromkeys(names, 0))
        counts.update(names[index] for index in (*labels, *objects) if index < len(names))
        return counts


def look_at(folder: Path) -> tuple[list[Seen], list[str]]:
    """Load all datasets of a folder and read all of their pictures.

    Returns:
        the datasets that can be used, and a sentence for each file that cannot.

    Raises:
        UserError: there is no such folder, or nothing in it can be used.
    """
    found, problems = find_datasets(folder)
    seen = []
    for item in found:
        name = _name_of(item, folder, {other.name for other in seen})
        try:
            register_custom_datasets({name: item.node})
            dataset = Seen(name, item, load_dataset(name))
        except UserError as error:
            problems.append(str(error))
            continue
        for record in dataset.records:
            if "file_name" in record:
                _read(record, dataset)
        seen.append(dataset)
    if not seen:
        known = "; ".join(its.form for its in FORMATS.values())
        why = f": {problems[0]}" if problems else f". It knows {known}"
        raise UserError(f"{folder} has no data that can be used{why}")
    return seen, problems


def _read(record: dict, dataset: Seen) -> None:
    try:
        dataset.sizes.append(read_image(record, "RGB").shape[:2])
    except UnreadableImage as error:
        dataset.broken.append(str(error))


def _name_of(found: Found, folder: Path, taken: Iterable[str]) -> str:
    # "my_data_objects_train"; a second one of its kind is "my_data_objects_train_2".
    words = re.sub(r"\W+", "_", folder.resolve().name).strip("_") or "own"
    task = _TASKS[FORMATS[found.node["FORMAT"]].evaluated_as[0]][0]
    split = found.node.get("SPLIT") or found.split
    stem = "_".join(part for part in (words, task, split) if part)
    number = 1
    while (name := stem if number == 1 else f"{stem}_{number}") in taken:
        number += 1
    return name


def summary(seen: Sequence[Seen], problems: Sequence[str]) -> str:
    """What was seen, for the user."""
    lines = []
    for dataset in seen:
        title = FORMATS[dataset.found.node["FORMAT"]].title
        lines.append(f"{dataset.name}: {title} ({dataset.found.path})")
        if dataset.sizes or dataset.broken:
            count = len(dataset.sizes) + len(dataset.broken)
            heights, widths = zip(*dataset.sizes) if dataset.sizes else ((0,), (0,))
            lines.append(
                f"  {count} pictures of {min(widths)} to {max(widths)} x {min(heights)} to {max(heights)} pixels"
            )
        else:
            lines.append(f"  {len(dataset.records)} texts")
        counts = dataset.counts().most_common()
        if counts:
            listed = ", ".join(f"{name} {count}" for name, count in counts[:LISTED])
            more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
            lines.append(f"  {len(counts)} categories: {listed}{more}")
    broken = [*(line for dataset in seen for line in dict.fromkeys(dataset.broken)), *problems]
    lines.append(f"{len(broken)} broken files" + (":" if broken else ""))
    lines += [f"  {line}" for line in broken[:LISTED]]
    if len(broken) > LISTED:
        lines.append(f"  and {len(broken) - LISTED} more")
    return "\n".join(lines)


def configuration(seen: Sequence[Seen], base: str, weights: str, output_dir: str) -> str:
    """The text of a configuration for these datasets.

    Args:
        seen: the datasets.
        base: the value of ``_BASE_``.
        weights: a checkpoint to start from, or "" for random weights.
        output_dir: the value of ``OUTPUT_DIR``.
    """
    custom, tasks, tested = _tasks_of(seen)
    settings: dict[str, Any] = {"_BASE_": base}
    reasons: dict[str, str] = {}
    settings["DATASETS"] = {"CUSTOM": custom, "TEST": tested}
    settings["TASKS"] = {"NAMES": list(tasks), **tasks}
    _choose_model(seen, weights, settings, reasons)
    _choose_iterations(seen, tasks, weights, settings, reasons)
    settings["OUTPUT_DIR"] = output_dir
    return _as_yaml(settings, reasons)


def _tasks_of(seen: Sequence[Seen]) -> tuple[dict, dict, list[str]]:
    """Nodes of DATASETS.CUSTOM and of TASKS, and the names for DATASETS.TEST."""
    custom: dict[str, dict] = {}
    tasks: dict[str, dict] = {}
    tested: list[str] = []
    by_kind = Counter((d.evaluator_type, d.found.split) for d in seen)
    for dataset in seen:
        task, kind, _ = _TASKS[dataset.evaluator_type]
        node, learned = dict(dataset.found.node), dataset.name
        if dataset.found.split != "test" and not by_kind[dataset.evaluator_type, "test"]:
            share = {"TEST_SHARE": TEST_SHARE}
            learned = dataset.name.removesuffix("_train") + "_train"
            held_out = dataset.name.removesuffix("_train") + "_test"
            custom[learned] = {**node, "PART": "train", **share}
            custom[held_out] = {**node, "PART": "test", **share}
            tested.append(held_out)
        else:
            custom[learned] = node
        if dataset.found.split == "test":
            tested.append(dataset.name)
        else:
            node = tasks.setdefault(task, {"KIND": kind, "DATASETS": [], **_SETTINGS[kind]})
            node["DATASETS"].append(learned)
    if not tasks:
        raise UserError("there are test sets only: nothing to train on")
    return custom, tasks, tested


def _choose_model(seen: Sequence[Seen], weights: str, settings: dict, reasons: dict[str, str]) -> None:
    sizes = np.array([size for dataset in seen for size in dataset.sizes], dtype=np.float64).reshape(-1, 2)
    with_objects = [d for d in seen if d.evaluator_type in ("coco", "lvis", "grounding")]
    annotations = [(a, r) for d in with_objects for r in d.records for a in r["annotations"]]
    model: dict[str, Any] = {}
    if weights:
        model["WEIGHTS"] = weights
    if with_objects:
        model["MASK_ON"] = all(a.get("segmentation") for a, _ in annotations if not a.get("iscrowd", 0))
        reasons["MASK_ON"] = "whether every object has an outline"
        region = {"ANCHOR_SIZE": _anchor(annotations)}
        reasons["ANCHOR_SIZE"] = "side of the smaller objects, as a share of their picture"
        most = max(len(r["annotations"]) for d in with_objects for r in d.records)
        if most > 24 and not weights:
            region["NUM_QUERIES"] = int(np.ceil(most * 1.25 / 10) * 10)
            reasons["NUM_QUERIES"] = f"the fullest picture has {most} objects"
        model["UNIPERCEIVER_V2"] = {"REGION": region}
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
    for node in settings["TASKS"].values():
        if isinstance(node, dict) and node["KIND"] == "classification":
            own = [size for d in seen if d.evaluator_type == "imagenet" for size in d.sizes]
            node["IMAGE_SIZE"] = _side(np.median(np.array(own).min(1)), 224) if own else 224


def _anchor(annotations: Sequence[tuple[dict, dict]]) -> float:
    sides = [(max(a["bbox"][2], 1) * max(a["bbox"][3], 1) / (r["height"] * r["width"])) ** 0.5 for a, r in annotations]
    return round(float(np.clip(np.quantile(sides, 0.25) if sides else 0.1, 0.02, 0.4)), 3)


def _side(pixels: float, most: int) -> int:
    return int(np.clip(round(pixels / 32) * 32, 32, most // 32 * 32))


def _choose_iterations(
    seen: Sequence[Seen], tasks: dict, weights: str, settings: dict, reasons: dict[str, str]
) -> None:
    batches = sum(
        len(d.records) * (1 - TEST_SHARE) / tasks[_TASKS[d.evaluator_type][0]]["IMS_PER_BATCH"]
        for d in seen
        if d.found.split != "test"
    )
    most = int(np.clip(round(EPOCHS * batches, -2), FEWEST, MOST))
    period = max(most // 10, 1)
    settings["SOLVER"] = {
        "MAX_ITER": most,
        "STEPS": [int(most * 0.8)],
        "WARMUP_ITERS": min(100, most // 10),
        "CHECKPOINT_PERIOD": period,
        "CHECKPOINTS_KEPT": 2,
        "EARLY_STOPPING": 5,
    }
    reasons["MAX_ITER"] = f"about {EPOCHS} times through the data, at least {FEWEST} and at most {MOST} iterations"
    reasons["EARLY_STOPPING"] = "evaluations in a row without a better one"
    if weights:
        settings["SOLVER"] |= {"BASE_LR": 0.0002, "DECODER_DELAY": 0}
        reasons["BASE_LR"] = "lower than from random weights"
    else:
        settings["SOLVER"]["DECODER_DELAY"] = most // 8
    first = settings["DATASETS"]["TEST"][0] if settings["DATASETS"]["TEST"] else ""
    settings["TEST"] = {"EVAL_PERIOD": period}
    if first:
        metric = _TASKS[_evaluator_type_in(settings, first)][2]
        settings["TEST"]["BEST_METRIC"] = f"{first}/{metric}"
        reasons["BEST_METRIC"] = "model_best.pth has the weights with its best value"
    else:
        settings["SOLVER"]["EARLY_STOPPING"] = 0
    broken = sum(len(d.broken) for d in seen)
    if broken:
        share = broken / sum(len(d.broken) + len(d.sizes) for d in seen)
        settings["DATALOADER"] = {"MAX_CORRUPT_SHARE": round(min(2 * share + 0.01, 1.0), 3)}
        reasons["MAX_CORRUPT_SHARE"] = f"{broken} pictures cannot be read; a test set must not have any"


def _evaluator_type_in(settings: dict, name: str) -> str:
    node = settings["DATASETS"]["CUSTOM"][name]
    return node.get("EVALUATED_AS", FORMATS[node["FORMAT"]].evaluated_as[0])


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


def _relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, where both are in the working folder. Otherwise the whole path."""
    here = Path.cwd().resolve()
    path, folder = path.resolve(), folder.resolve()
    if here in path.parents and (folder == here or here in folder.parents):
        return os.path.relpath(path, folder)
    return str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m uniperceiver_v2.new", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of your data")
    parser.add_argument("--output", type=Path, help="the configuration to write; by default FOLDER's name with .yaml")
    parser.add_argument("--base", type=Path, default=TINY_CONFIG, help="the configuration that gives the model")
    parser.add_argument("--weights", default="", help="a checkpoint of that model to start from")
    args = parser.parse_args(arguments)
    output = args.output or Path(f"{args.folder.resolve().name}.yaml")
    try:
        if output.exists():
            raise UserError(f"{output} exists already: remove it, or give another name by --output")
        if not args.base.is_file():
            raise UserError(f"--base: there is no configuration {args.base}")
        seen, problems = look_at(args.folder)
        print(summary(seen, problems))
        base = _relative(args.base, output.parent)
        text = configuration(seen, base, args.weights, f"output/{output.stem}")
        write_atomically(str(output), lambda file: file.write(text.encode()))
        load_config(str(output))  # what was written can be trained
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{output} is written. Train by: python projects/uniperceiver_v2/train_net.py --config-file {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
