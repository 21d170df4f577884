"""A detector whose classes are combinations of a colour and a digit, "red seven" one of them: a closed vocabulary.

It is the CenterNet of specialists/, with an embedding for each of the 70 combinations and no texts. open_labels.py
trains it on the scenes without some digits, beside the generalist. It has a class for these as well, but never an
example.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Instances
from specialist_runs import Run, train
from specialists.centernet import DETECTOR, Detector
from specialists.common import Specialist

from uniperceiver_v2.data import build_test_loader
from uniperceiver_v2.evaluation.digit_scenes.parser import COLOURS, NAMES

LABELS = [f"{colour} {name}" for colour in COLOURS for name in NAMES]


class ClosedVocabulary(Detector):
    """Of ``LABELS``."""

    num_classes = len(LABELS)


@dataclass(frozen=True)
class ClosedRun(Run):
    """A run of it in the folder ``output``, with the training scenes of ``dataset``."""

    dataset: str

    @property
    def specialist(self) -> Specialist:
        settings = {**DETECTOR.settings, "TASKS.scenes.DATASETS": [self.dataset]}
        return replace(DETECTOR, build=ClosedVocabulary, settings=settings)

    @property
    def folder(self) -> Path:
        return self.output


def register_combinations(name: str, dataset: str, json_file: Path) -> None:
    """Register under ``name`` the scenes of a dataset with ``LABELS`` as categories.

    Args:
        dataset: of a tree of digit_scenes, whose annotations have a "color". Crowds are left out.
        json_file: where the annotations are written.
    """
    metadata = MetadataCatalog.get(dataset)
    content = json.loads(Path(metadata.json_file).read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    content["annotations"] = [
        {**one, "category_id": 1 + LABELS.index(f"{one['color']} {names[one['category_id']]}")}
        for one in content["annotations"]
        if not one["iscrowd"]
    ]
    content["categories"] = [{"id": index + 1, "name": label} for index, label in enumerate(LABELS)]
    json_file.write_text(json.dumps(content))
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # Of our own making: the combinations without an example are meant.
    register_coco_instances(name, {"own_format": True}, str(json_file), metadata.image_root)


def train_closed_vocabulary(
    folder: Path, dataset: str, test: str, iterations: int, seed: int
) -> tuple[dict[int, Instances], list[dict]]:
    """Train it on one dataset of digit_scenes and let it detect in another.

    Args:
        folder: of the run, with its checkpoint.
        iterations: batches of scenes.

    Returns:
        by image id what it has found, with indices of ``LABELS`` as classes; and the log of the training.
    """
    combinations = f"combinations_{dataset}"
    register_combinations(combinations, dataset, folder / "combinations.json")
    run = ClosedRun("closed vocabulary", iterations / DETECTOR.pace, DETECTOR.rate, seed, folder, combinations)
    cfg = run.configuration()
    torch.manual_seed(seed)
    model = ClosedVocabulary(cfg)
    log = train(model, run, cfg)
    model.eval()
    with torch.no_grad():
        found = {
            x["image_id"]: result["instances"]
            for inputs in build_test_loader(cfg, test)
            for x, result in zip(inputs, model(inputs), strict=True)
        }
    (folder / "checkpoint.pth").unlink()
    return found, log
