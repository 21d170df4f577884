"""Makes scores say how often they are right: fits the temperatures of detection and classification.

    python -m uniperceiver_v2.calibrate output/RUN [--weights FILE] [--images N]

The directory is a run's OUTPUT_DIR, or one of ``Predictor.save_pretrained``. The temperatures are fitted on training
images alone and written into the directory's settings, as ``TASKS.<name>.TEMPERATURE``. docs/predictor.md says what
scores then mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from tqdm import tqdm

from .data.datasets.held_out import without_held_out
from .data.datasets.records import candidate_names
from .errors import UnreadableImage, UserError, exit_code
from .files import write_atomically, write_json
from .kinds import ConfiguredTask, configured_task
from .predictor import Predictor
from .predictor.pretrained import CONFIG, read_description
from .report.calibration import LOWEST_DETECTION, Reliability
from .report.matching import IGNORED, classes_by_id, matched

IMAGES = 2000  # of a task
FOLDS = 5  # parts of the images, of which each is judged with the temperature of the others
FEWEST = 10  # predictions that are right, and that are wrong, below which a temperature would be chance
RANGE = 0.05, 20.0  # of temperatures
_YAML = "config.yaml"
_TINY = 1e-30  # a probability that a float32 cannot hold must not become a likelihood of -inf
_ALMOST_1 = 1 - 2.0**-25


@dataclass(frozen=True, eq=False)
class Judged:
    """N predictions with a temperature of 1, and what is right.

    Attributes:
        logits: [N,C]. A detection is a choice of two, wrong or right.
        labels: [N], the right choices.
        chosen: [N], the choice whose probability is the score.
        image: [N], the place of the image in the dataset.
        lowest: predictions with a lower score are left out of the calibration error, as in the report.
    """

    logits: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray
    image: np.ndarray
    lowest: float = 0.0

    def __getitem__(self, which: np.ndarray) -> Judged:
        return replace(self, **{k: getattr(self, k)[which] for k in ("logits", "labels", "chosen", "image")})

    def scores(self, temperature: float | np.ndarray) -> np.ndarray:
        """[N], with one temperature or one for each prediction."""
        scaled = self.logits / np.reshape(temperature, (-1, 1))
        return np.take_along_axis(softmax(scaled, axis=1), self.chosen[:, None], axis=1)[:, 0]

    def likelihood(self, temperature: float | np.ndarray) -> float:
        """The mean negative log-likelihood of what is right."""
        scaled = self.logits / np.reshape(temperature, (-1, 1))
        of_labels = np.take_along_axis(scaled, self.labels[:, None], axis=1)[:, 0]
        return float(np.mean(logsumexp(scaled, axis=1) - of_labels))

    def error(self, temperature: float | np.ndarray) -> float:
        """The expected calibration error, in 0..1."""
        scores = self.scores(temperature)
        counted = scores >= self.lowest
        return Reliability.of(scores[counted], (self.chosen == self.labels)[counted]).error

    def counts(self) -> tuple[int, int]:
        """How many predictions are right and how many are wrong, of those whose score counts."""
        right = (self.chosen == self.labels)[self.scores(1.0) >= self.lowest]
        return int(right.sum()), int((~right).sum())


def fitted(judged: Judged) -> float:
    """The temperature with which what is right is likeliest."""
    bounds = tuple(np.log(RANGE))
    found = minimize_scalar(lambda x: judged.likelihood(np.exp(x)), bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def fitted_on_others(judged: Judged) -> np.ndarray:
    """[N]: for each prediction, the temperature that is fitted on four fifths of the images, without its own."""
    part = np.unique(judged.image, return_inverse=True)[1] % FOLDS
    return np.array([fitted(judged[part != own]) for own in range(FOLDS)])[part]


def judge_detections(predictor: Predictor, task: ConfiguredTask, count: int) -> Judged:
    """Detections in training images, seen as in evaluation: right where they find an object in COCO's matching."""
    records: list[dict] = []
    for name in task.settings.datasets:
        own, mapper = task.kind.test_data(predictor.cfg, name, task)
        records += own
    records = _without_held_out(predictor.cfg, task, records)
    dataset = task.settings.datasets[0]
    is_lvis = MetadataCatalog.get(dataset).get("evaluator_type") == "lvis"
    class_of = classes_by_id(dataset, len(candidate_names(dataset)), is_lvis)
    id_of = {c: i for i, c in class_of.items()}
    chosen = _shuffled(len(records))[:count]
    scores, right, image = [], [], []
    for place, prediction in _predictions(predictor, records, chosen, mapper):
        found = prediction["instances"]
        boxes = BoxMode.convert(found.pred_boxes.tensor.double(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        results = [
            {"bbox": box, "score": score, "category_id": id_of[c]}
            for box, score, c in zip(boxes, found.scores.tolist(), found.pred_classes.tolist())
        ]
        detections = matched(records[place], results, class_of)
        counted = detections.found != IGNORED
        scores.append(detections.scores[counted])
        right.append(detections.found[counted] >= 0)
        image.append(np.full(int(counted.sum()), place))
    return judged_detections(*map(np.concatenate, (scores, right, image)))


def judged_detections(scores: np.ndarray, right: np.ndarray, image: np.ndarray) -> Judged:
    """Detections with these scores, whether each is right, and its image, all [N]."""
    p, labels = np.clip(scores, _TINY, _ALMOST_1), right.astype(int)
    logits = np.stack((np.zeros_like(p), np.log(p) - np.log1p(-p)), 1)
    return Judged(logits, labels, np.ones_like(labels), image, LOWEST_DETECTION)


def judge_classes(predictor: Predictor, task: ConfiguredTask, count: int) -> Judged:
    """The classes of training images, cropped and flipped as in training: the whole ones a model knows by heart. If
    there are fewer, an image is seen several times, each time with another crop."""
    records, mapper = task.kind.training_data(predictor.cfg, task)
    records = _without_held_out(predictor.cfg, task, records)
    chosen = np.resize(_shuffled(len(records)), count)
    found = _predictions(predictor, records, chosen, mapper)
    places, probabilities = zip(*((place, prediction["scores"].double().numpy()) for place, prediction in found))
    logits = np.log(np.maximum(np.stack(probabilities), _TINY))
    labels = np.array([records[place]["label"] for place in places])
    return Judged(logits, labels, logits.argmax(1), np.array(places))


JUDGES: dict[str, Callable[[Predictor, ConfiguredTask, int], Judged]] = {
    "detection": judge_detections,
    "classification": judge_classes,
}


def _without_held_out(cfg: CfgNode, task: ConfiguredTask, records: Sequence[dict]) -> list[dict]:
    """Without the photographs of test sets, as in training."""
    return without_held_out(list(records), (*cfg.DATASETS.HELD_OUT, *cfg.DATASETS.TEST), task.name)


def _shuffled(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)


def _predictions(
    predictor: Predictor, records: Sequence[dict], chosen: np.ndarray, mapper: Callable[[dict], Any]
) -> Iterator[tuple[int, dict]]:
    """(place, prediction on the CPU) of each chosen record, if its image can be read.

    Raises:
        UserError: no image can.
    """
    np.random.seed(0)  # mappers draw from it
    size, read = predictor.cfg.TEST.IMS_PER_BATCH, 0
    with tqdm(total=len(chosen), unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(chosen), size):
            places = [int(place) for place in chosen[start : start + size]]
            samples = {p: s for p in places if (s := _sample(mapper, records[p])) is not None}
            predictions = predictor.model(list(samples.values())) if samples else []
            for place, prediction in zip(samples, predictions, strict=True):
                yield place, {key: value.to("cpu") for key, value in prediction.items()}
            read += len(samples)
            bar.update(len(places))
    if not read:
        raise UserError(f"none of the {len(chosen)} images can be read")


def _sample(mapper: Callable[[dict], Any], record: dict) -> Any:
    try:
        return mapper(record)
    except UnreadableImage as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def calibrate(directory: Path, weights: str | None = None, images: int = IMAGES) -> dict[str, float]:
    """Fit the temperatures of a directory's model, print what they change, and write them into its settings.

    Args:
        directory: a run's, or one of :meth:`~uniperceiver_v2.Predictor.save_pretrained`.
        weights: the checkpoint, by default the directory's own: ``model_final.pth`` of a run.
        images: the number of training images for each task.

    Returns:
        {task: its temperature}

    Raises:
        UserError: the directory has no model, or the training data of a task is not here. Nothing is written then.
        OSError: the settings cannot be written.
    """
    if images < 1:
        raise UserError(f"--images must be at least 1, not {images}")
    predictor = load(directory, weights)
    tasks = [configured_task(predictor.cfg, name) for name in predictor.cfg.TASKS.NAMES]
    tasks = [task for task in tasks if task.kind.name in JUDGES]
    if not tasks:
        raise UserError(f"the model of {directory} trains no task of {' or '.join(JUDGES)}")
    found = {}
    for task in tasks:
        model_task = predictor.model.tasks[task.name]
        model_task.settings = replace(model_task.settings, temperature=1.0)
        found[task.name] = _fit(task, JUDGES[task.kind.name](predictor, task, images))
    write_temperatures(directory, found)
    return found


def _fit(task: ConfiguredTask, judged: Judged) -> float:
    """The temperature of a task, after a few lines about it."""
    right, wrong = judged.counts()
    of = f" with a score of at least {judged.lowest:g}" if judged.lowest else ""
    print(f"{task.name} ({task.kind.name}): {right:,} right and {wrong:,} wrong predictions{of}, in training images")
    if min(right, wrong) < FEWEST or len(np.unique(judged.image)) < FOLDS:
        print(f"  temperature 1, since a fitted one needs at least {FEWEST} of either, in at least {FOLDS} images")
        return 1.0
    temperature, of_others = round(fitted(judged), 4), fitted_on_others(judged)
    print(f"  temperature {temperature:g}; without it and with it, on images that it was not fitted on:")
    print(f"  expected calibration error {100 * judged.error(1.0):.2f}% -> {100 * judged.error(of_others):.2f}%")
    print(f"  negative log-likelihood {judged.likelihood(1.0):.5f} -> {judged.likelihood(of_others):.5f}")
    if judged.likelihood(of_others) >= judged.likelihood(1.0):
        print("  temperature 1, since the fitted one does not help there")
        return 1.0
    return temperature


def load(directory: Path, weights: str | None) -> Predictor:
    """
    Raises:
        UserError: the directory has no model that can be used.
    """
    if (directory / CONFIG).is_file():
        if weights:
            raise UserError(f"{directory} has weights of its own: leave out --weights")
        return Predictor.from_pretrained(directory)
    if not (directory / _YAML).is_file():
        raise UserError(f"{directory} is no directory of a run or a model: it has neither {_YAML} nor {CONFIG}")
    return Predictor(directory / _YAML, weights or directory / "model_final.pth")


def write_temperatures(directory: Path, temperatures: Mapping[str, float]) -> None:
    """Set ``TASKS.<name>.TEMPERATURE`` in the settings of a directory: in its ``config.json`` and ``config.yaml``, of
    which each is written completely or not at all."""
    if (directory / CONFIG).is_file():
        description = read_description(directory)
        _set(description["settings"], temperatures)
        write_json(str(directory / CONFIG), description)
    if (directory / _YAML).is_file():
        settings = yaml.safe_load((directory / _YAML).read_text(encoding="utf-8"))
        _set(settings, temperatures)
        text = yaml.safe_dump(settings)
        write_atomically(str(directory / _YAML), lambda file: file.write(text.encode()))


def _set(settings: dict[str, Any], temperatures: Mapping[str, float]) -> None:
    for name, value in temperatures.items():
        settings.setdefault("TASKS", {}).setdefault(name, {})["TEMPERATURE"] = value


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m uniperceiver_v2.calibrate", description="Make scores say how often they are right."
    )
    parser.add_argument("directory", type=Path, help="a run's OUTPUT_DIR, or a directory of Predictor.save_pretrained")
    parser.add_argument("--weights", metavar="FILE", help="a run's checkpoint (default: its model_final.pth)")
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help=f"training images of a task (default: {IMAGES})"
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: calibrate(args.directory, args.weights, args.images) and None)


if __name__ == "__main__":
    sys.exit(main())
