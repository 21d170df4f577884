"""A demo's questions to a predictor about an image, and their answers as JSON and as a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from uniperceiver_v2.errors import UserError, nearest
from uniperceiver_v2.predictor import (
    Caption,
    Classification,
    Detections,
    EncodedImages,
    Grounding,
    Predictor,
    trained_kinds,
)
from uniperceiver_v2.visualization import Answers, Panel, draw_card, draw_marks, fitted

# {name of the option --tasks: kind of task}
TASKS = {"detect": "detection", "ground": "grounding", "caption": "captioning", "classify": "classification"}
CLASSES_WRITTEN = 5


@dataclass(frozen=True)
class Answer:
    """What the model says about one image. None stands for a question that was not asked."""

    detect: Detections | None = None
    ground: Grounding | None = None
    caption: Caption | None = None
    classify: Classification | None = None

    def __str__(self) -> str:
        return "; ".join(f"{name}: {part}" for name, part in self._parts().items())

    def _parts(self) -> dict[str, Any]:
        parts = {"objects": self.detect, "phrases": self.ground, "caption": self.caption, "class": self.classify}
        return {name: part for name, part in parts.items() if part is not None}

    def to_json(self) -> dict[str, Any]:
        """Objects in COCO's format of results with their names, the caption, and the likeliest classes."""
        (height, width), *_ = [part.size for part in self._parts().values()]
        content: dict[str, Any] = {"height": height, "width": width}
        for key, found in (("objects", self.detect), ("phrases", self.ground)):
            if found is not None:
                content[key] = _rows(found)
        if self.caption is not None:
            content["caption"] = {"text": self.caption.text, "log_likelihood": self.caption.log_likelihood}
        if self.classify is not None:
            top = self.classify.top(CLASSES_WRITTEN)
            content["classes"] = [{"label": label, "probability": share} for label, share in top]
        return content

    def card(self, pixels: np.ndarray, title: str = "", side: int | None = None) -> Image.Image:
        """The picture with objects and phrases, above the caption and the classes.

        Args:
            pixels: the image, uint8 [H,W,3], RGB.
            title: stands above.
            side: of a square that holds the picture; None for a picture of its own size, small ones enlarged.
        """
        picture = fitted(pixels, side, side) if side else fitted(pixels)
        panels = []
        if self.detect is not None:
            heading = "objects" if self.ground is not None else ""
            panels.append(Panel(draw_marks(picture, self.detect.marks(picture)), heading))
        if self.ground is not None:
            heading = "phrases: " + ", ".join(self.ground.labels)
            panels.append(Panel(draw_marks(picture, self.ground.marks(picture)), heading))
        caption = None if self.caption is None else (self.caption.text, self.caption.log_likelihood)
        classes = None if self.classify is None else self.classify.top(CLASSES_WRITTEN)
        return draw_card(panels or [Panel(Image.fromarray(picture))], Answers(caption, classes), title, side)


def _rows(found: Detections) -> list[dict[str, Any]]:
    """Rows of COCO's results without the image's id, which the file has once."""
    rows = found.to_coco(image_id=0)
    for row, box in zip(rows, found, strict=True):
        del row["image_id"]
        row["label"] = box.label
    return rows


@dataclass(frozen=True)
class Questions:
    """What is asked of every image.

    Args:
        tasks: names of ``TASKS``.
        labels: to choose from in detection and classification; None for those of the training.
        phrases: that "ground" looks for.
        threshold: objects with a lower score are left out.
    """

    tasks: Sequence[str]
    labels: Sequence[str] | None
    phrases: Sequence[str]
    threshold: float

    def answers(self, predictor: Predictor, images: EncodedImages) -> list[Answer]:
        """An answer for each image."""
        found: dict[str, list[Any]] = {}
        for task in self.tasks:
            if task == "detect":
                found[task] = predictor.detect(images, self.labels, threshold=self.threshold)
            elif task == "ground":
                found[task] = predictor.ground(images, self.phrases, threshold=self.threshold)
            elif task == "caption":
                found[task] = predictor.caption(images)
            else:
                found[task] = predictor.classify(images, self.labels)
        return [Answer(**dict(zip(found, answers))) for answers in zip(*found.values())]

    def untrained(self, predictor: Predictor) -> list[str]:
        """The tasks that the model was not trained on."""
        trained = trained_kinds(predictor)
        return [task for task in self.tasks if TASKS[task] not in trained]


def questions_of(tasks: str | None, labels: str | None, phrases: str | None, threshold: float) -> Questions:
    """The questions that the options of the command line ask.

    Raises:
        UserError: a task is unknown, a list is empty, or "ground" has no phrases.
    """
    named = _list(tasks, "--tasks") if tasks is not None else ["detect", "caption"]
    asked = _list(phrases, "--phrases") if phrases is not None else []
    for task in named:
        if task not in TASKS:
            raise UserError(f"--tasks: there is no task {task!r}{nearest(task, TASKS)}")
    if "ground" in named and not asked:
        raise UserError('--tasks: "ground" looks for phrases; give them with --phrases "the red seven, a blue two"')
    if not 0 <= threshold <= 1:
        raise UserError(f"--confidence-threshold is a score in 0..1, not {threshold:g}")
    chosen = [task for task in TASKS if task in named or (task == "ground" and asked)]
    return Questions(chosen, None if labels is None else _list(labels, "--labels"), asked, threshold)


def _list(text: str, option: str) -> list[str]:
    names = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise UserError(f"{option} is empty: give names with commas between them")
    return names
