"""Words in new combinations: what a model knows of digits and of phrases that its training left out.

    python datasets/prepare_digit_scenes.py --development
    python projects/uniperceiver_v2/experiments/open_labels.py [--iterations 2100] [--seeds 1] [--only ARM ...]

Two arms train the small generalist on all of its tasks: "everything" on the development tree, "left out" on the same
tree without ``DIGITS`` and ``FORMS``, which this program prepares. No training picture of the second arm shows a red
seven, no training text names one, and no training phrase says "the largest digit" or "above a three"; its captions do.
Both are tested on the same development scenes, with digits and phrases sorted by whether they were left out. Each word
by itself was learned. So the second arm knows what was left out only if it puts words together, and the first one shows
what it would know otherwise. Detection has ten digits as classes, of which none was left out, so it is also asked with
colours and digits as labels. Beside them "closed vocabulary" is a detector for one task that has a list of such classes
(closed_vocabulary.py) and the training scenes of the second arm.

Writes its table into docs/specialists.md. study.py describes how runs are kept and resumed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from closed_vocabulary import LABELS, train_closed_vocabulary
from cures import PREFIX, register_development
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances, pairwise_iou
from run_records import claimed, keep_log, keep_report
from study import Arm, Study

from uniperceiver_v2 import Predictor
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import load_dataset, register_digit_scenes
from uniperceiver_v2.data.datasets.builtin import datasets_root
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.evaluation.digit_scenes.facts import Scene, SceneFacts, Thing
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG

DIGITS = ("red seven", "blue three", "green one", "yellow five", "purple two", "white seven")  # an eighth of all
FORMS = {
    "extreme": re.compile(r"\b(largest|smallest|leftmost|rightmost|highest|lowest)\b"),
    "relation": re.compile(r"\b(to the (left|right) of|above|below)\b"),
}
CLOSED = "closed vocabulary"  # the arm that is a detector of its own
LEFT_OUT = "left_out_"  # before the names of the datasets of the second arm
TESTS = {
    "scenes": f"{PREFIX}digit_scenes_test",
    "scene_phrases": f"{PREFIX}digit_scenes_phrases_test",
    "digits": f"{PREFIX}digits_test",
    "scene_captions": f"{PREFIX}digit_scenes_captions_test",
    "scene_pairs": f"{PREFIX}digit_scenes_retrieval_test",
    "corpus": f"{PREFIX}digit_corpus_test",
}
CERTAIN, IOU = 0.3, 0.5  # a digit is found by a detection of its class with this score and overlap


def names_left_out(text: str) -> bool:
    """Whether a text names a digit that the second arm has never seen."""
    return any(re.search(rf"\b{digit}(s|es)?\b", text) for digit in DIGITS)


def is_left_out(thing: Thing) -> bool:
    return f"{thing.colour} {thing.name}" in DIGITS


def shares(answers: Mapping[str, list[bool]]) -> dict[str, float]:
    """By group, the share of right answers in percent."""
    return {group: 100 * sum(right) / len(right) for group, right in answers.items()}


def found_digits(folder: Path, facts: SceneFacts, class_names: list[str]) -> dict[str, float]:
    """The share of digits with a certain detection of their class."""
    found = defaultdict(list)
    for result in _read(folder / "coco_instances_results.json"):
        x, y, width, height = result["bbox"]
        if result["score"] >= CERTAIN:
            name = class_names[result["category_id"] - 1]
            found[result["image_id"], name].append([x, y, x + width, y + height])
    answers = defaultdict(list)
    for image, scene in facts.by_image.items():
        for thing in scene:
            if not thing.is_crowd:
                x, y, width, height = thing.box
                truth = Boxes([[x, y, x + width, y + height]])
                overlaps = pairwise_iou(truth, Boxes(found[image, thing.name]))
                answers["left out" if is_left_out(thing) else "others"].append(bool((overlaps >= IOU).any()))
    return shares(answers)


def detect_labels(predictor: Predictor, files: Mapping[int, str]) -> dict[int, Instances]:
    """What a model finds in images when it is asked for ``LABELS``. files: paths by image id."""
    found = predictor.detect(list(files.values()), LABELS, threshold=0.0)
    return dict(zip(files, (detections.instances for detections in found), strict=True))


def named_digits(found: Mapping[int, Instances], facts: SceneFacts) -> dict[str, float]:
    """The share of digits whose best detection has their colour and name. found: by image, with indices of
    ``LABELS`` as classes."""
    answers = defaultdict(list)
    for image, scene in facts.by_image.items():
        for thing in scene:
            if not thing.is_crowd:
                x, y, width, height = thing.box
                overlaps = pairwise_iou(Boxes([[x, y, x + width, y + height]]), found[image].pred_boxes)[0]
                own = found[image][overlaps >= IOU]
                best = [LABELS[own.pred_classes[own.scores.argmax()]]] if len(own) else []
                answers["left out" if is_left_out(thing) else "others"].append(best == [f"{thing.colour} {thing.name}"])
    return shares(answers)


def found_phrases(folder: Path) -> dict[str, float]:
    """The share of phrases whose best box is right, by what of them was left out."""
    answers = defaultdict(list)
    for record in _read(folder / "predictions.json"):
        for phrase in record["phrases"]:
            if phrase["boxes"]:
                overlaps = pairwise_iou(Boxes(phrase["found"][:1]), Boxes(phrase["boxes"]))
                answers[_group_of(phrase["phrase"])].append(bool((overlaps >= IOU).any()))
    return shares(answers)


def _group_of(phrase: str) -> str:
    forms = [name for name, pattern in FORMS.items() if pattern.search(phrase)]
    digits = ["left out"] if names_left_out(phrase) else []
    return " and ".join(digits + forms) or "others"


def true_captions(folder: Path, facts: SceneFacts) -> dict[str, float]:
    """The share of wholly true captions: of those that name a digit left out, and of scenes with and without one. And
    how many captions of the former scenes name it."""
    answers = defaultdict(list)
    records = _read(folder / "truth.json")
    for record, scene in zip(records, facts.of(records), strict=True):
        shows, names = _shows_left_out(scene), names_left_out(record["caption"])
        answers["left out" if shows else "others"].append(record["true"])
        if names:
            answers["naming it"].append(record["true"])
        if shows:
            answers["names it"].append(names)
    return shares(answers)


def _shows_left_out(scene: Scene) -> bool:
    return any(map(is_left_out, scene))


def found_images(folder: Path) -> dict[str, float]:
    """The share of captions whose own image is the most similar one."""
    answers = defaultdict(list)
    for caption in _read(folder / "predictions.json")["captions"]:
        group = "left out" if names_left_out(caption["caption"]) else "others"
        answers[group].append(caption["best_images"][0] == caption["image_id"])
    return shares(answers)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


GROUPS: dict[str, Callable[[Path, SceneFacts, list[str]], dict[str, float]]] = {
    "scenes": found_digits,
    "scene_phrases": lambda folder, *_: found_phrases(folder),
    "scene_captions": lambda folder, facts, _: true_captions(folder, facts),
    "scene_pairs": lambda folder, *_: found_images(folder),
}


class OpenLabels(Study):
    """Adds to the results of a test, as a kind "groups", its share of right answers by what was left out."""

    def _test(self, trainer: UniPerceiverTrainer, tasks: tuple[str, ...]) -> dict[str, Any]:
        results = super()._test(trainer, tasks)
        facts = SceneFacts(MetadataCatalog.get(self.tests["scene_captions"]).scene_facts)
        class_names = MetadataCatalog.get(self.tests["scenes"]).thing_classes
        for task, groups in GROUPS.items():
            folder = Path(trainer.cfg.OUTPUT_DIR) / "inference" / self.tests[task]
            results[self.tests[task]]["groups"] = groups(folder, facts, class_names)
        predictor = Predictor(trainer.cfg, Path(trainer.cfg.OUTPUT_DIR) / "model_final.pth")
        files = {record["image_id"]: record["file_name"] for record in load_dataset(self.tests["scenes"])}
        results[self.tests["scenes"]]["named"] = named_digits(detect_labels(predictor, files), facts)
        return results

    def train(self, name: str, seed: int, iterations: int) -> None:
        if name != CLOSED:
            super().train(name, seed, iterations)
            return
        folder, test = self.folder_of(name, seed, iterations), self.tests["scenes"]
        with claimed(folder) as ours:
            if not ours or self.is_finished(name, seed, iterations):
                return
            start = time.monotonic()
            found, log = train_closed_vocabulary(folder, f"{LEFT_OUT}digit_scenes_train", test, iterations, seed)
            named = named_digits(found, SceneFacts(MetadataCatalog.get(self.tests["scene_captions"]).scene_facts))
            keep_log(folder, log)
            minutes = (time.monotonic() - start) / 60
            keep_report(folder, {"minutes": minutes, "split": self.split, "results": {test: {"named": named}}})


def _training_left_out() -> dict[str, list[str]]:
    tasks = load_config(str(TINY_CONFIG)).TASKS
    return {f"TASKS.{task}.DATASETS": [LEFT_OUT + name for name in tasks[task].DATASETS] for task in TESTS}


def prepare_and_register() -> None:
    """Make both trees' datasets known, and write the second tree unless it is there."""
    register_development()
    if f"{LEFT_OUT}digit_scenes_train" not in DatasetCatalog.list():
        root = os.path.join(datasets_root(), "left_out", "digit_scenes")
        command = [sys.executable, str(REPOSITORY / "datasets" / "prepare_digit_scenes.py"), "--development"]
        options = ["--output", root, "--leave-out", *DIGITS, "--leave-out-phrases", *FORMS]
        subprocess.run([*command, *options], check=True)
        register_digit_scenes(root, prefix=LEFT_OUT)


STUDY = OpenLabels(
    __file__,
    arms={"everything": Arm(), "left out": Arm(settings=_training_left_out()), CLOSED: Arm(("scenes",))},
    tests=TESTS,
    metrics={
        "digits, left out": ("scenes", "groups", "left out"),
        "others": ("scenes", "groups", "others"),
        "named, left out": ("scenes", "named", "left out"),
        "other named": ("scenes", "named", "others"),
        "phrases, left out": ("scene_phrases", "groups", "left out"),
        "extreme": ("scene_phrases", "groups", "extreme"),
        "relation": ("scene_phrases", "groups", "relation"),
        "other phrases": ("scene_phrases", "groups", "others"),
        "captions that name it": ("scene_captions", "groups", "names it"),
        "true captions, left out": ("scene_captions", "groups", "left out"),
        "other captions": ("scene_captions", "groups", "others"),
        "image R@1, left out": ("scene_pairs", "groups", "left out"),
        "other images": ("scene_pairs", "groups", "others"),
    },
    tables={"": {name: (name,) for name in ("everything", "left out", CLOSED)}},
    document=REPOSITORY / "docs" / "specialists.md",
    first_column="training",
    prefix=PREFIX,
    iterations=2100,
    split="development",
    prepare=prepare_and_register,
)


if __name__ == "__main__":
    STUDY.main()
