"""Answers of a :class:`~uniperceiver_v2.predictor.Predictor`, small and frozen.

Boxes are absolute XYXY in pixels of the image as it was given. All values are on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Instances
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..tasks import LabelledProposals
from ..visualization import Mark, draw_detections, text_block
from ..visualization.draw import enlarged
from .inputs import Source

if TYPE_CHECKING:
    import supervision

LARGEST_DRAWN = 1600  # pixels of the longer side of a picture
MASK_PIXELS = 2**26  # of the masks that are pasted at once, which bounds the memory


class Box(NamedTuple):
    """A found object: its label, its score and its box."""

    label: str
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class _OfImage:
    """An answer about one image.

    Attributes:
        name: the image's path, or its place among those that were given.
        size: (height, width) of the image.
        source: the image as it was given. Drawing reads it again.
    """

    name: str
    size: tuple[int, int]
    source: Source = field(repr=False)

    def _picture(self, longest: int = LARGEST_DRAWN) -> np.ndarray:
        pixels = self.source.pixels()
        share = longest / max(pixels.shape[:2])
        if share >= 1:
            return pixels
        height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    def _captioned(self, text: str, lines: int = 2) -> Image.Image:
        picture = enlarged(self._picture())
        return Image.fromarray(np.vstack([picture, text_block(text, picture.shape[1], lines)]))


@dataclass(frozen=True, eq=False)
class Detections(_OfImage):
    """Objects in an image, the most certain first. It is a sequence of :class:`Box`.

    Attributes:
        labels: the names that were asked for.
        found: the objects without a size of their masks; :attr:`instances` has them at the size of the image.
        category_ids: the ids of ``labels`` in the user's own dataset, if they are its categories.
    """

    labels: tuple[str, ...]
    found: LabelledProposals = field(repr=False)
    category_ids: tuple[int | str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Box]:
        rows = zip(self.class_ids.tolist(), self.scores.tolist(), self.boxes.tolist())
        return (Box(self.labels[label], score, tuple(box)) for label, score, box in rows)

    def __str__(self) -> str:
        return ", ".join(f"{box.label} {box.score:.2f}" for box in self) or "nothing"

    @property
    def boxes(self) -> np.ndarray:
        """float32 [K,4], absolute XYXY."""
        return self.found.boxes_at(self.size).tensor.numpy()

    @property
    def scores(self) -> np.ndarray:
        """float32 [K]."""
        return self.found.scores.float().numpy()

    @property
    def class_ids(self) -> np.ndarray:
        """int64 [K], places in ``labels``."""
        return self.found.labels.numpy()

    @cached_property
    def instances(self) -> Instances:
        """Detectron2's: pred_boxes, scores, pred_classes and, if masks are learned, pred_masks, at the image's size.

        Masks are made when this is asked for the first time. They have K · H · W bytes: filter the objects of a large
        photograph first (:meth:`above`).
        """
        parts = [part.instances(self.size) for part in self._parts()]
        return parts[0] if len(parts) == 1 else Instances.cat(parts)

    def _parts(self) -> list[LabelledProposals]:
        """The objects, few enough at a time for their masks to fit into memory."""
        step = max(1, MASK_PIXELS // (self.size[0] * self.size[1]))
        return [self.found[start : start + step] for start in range(0, max(len(self), 1), step)]

    def above(self, threshold: float) -> Detections:
        """Those with at least this score."""
        return replace(self, found=self.found[self.found.scores >= threshold])

    def to_coco(self, image_id: Any = None, category_ids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
        """In COCO's format of results: "image_id", "category_id", "bbox" (XYWH), "score", "segmentation" (RLE).

        Args:
            image_id: by default the image's name.
            category_ids: the id of each label, by default that of the user's own dataset, or else the label's place in
                ``labels``.
        """
        category_ids = self.category_ids if category_ids is None else category_ids
        image_id = self.name if image_id is None else image_id
        rows = [row for part in self._parts() for row in instances_to_coco_json(part.instances(self.size), image_id)]
        if category_ids is not None:
            for row in rows:
                row["category_id"] = category_ids[row["category_id"]]
        return rows

    def to_supervision(self) -> supervision.Detections:
        """As ``supervision.Detections``, with masks and with the labels as data["class_name"].

        Raises:
            UserError: the package supervision is not installed.
        """
        names = np.array([self.labels[index] for index in self.class_ids], dtype=str)
        masks = self.instances.pred_masks.numpy() if self.found.masks is not None else None
        return _supervision().Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": names},
        )

    def marks(self, picture: np.ndarray) -> Iterator[Mark]:
        """The objects for ``visualization.draw_marks``, best first. One mask exists at a time.

        Args:
            picture: the image in the size in which it is drawn, uint8 [H,W,3].
        """
        for place, box in enumerate(self):
            scaled = self.found[place : place + 1].instances((picture.shape[0], picture.shape[1]))
            xyxy = tuple(scaled.pred_boxes.tensor[0].tolist())
            text = f"{box.label} {100 * box.score:.0f}"
            mask = scaled.pred_masks[0].numpy() if scaled.has("pred_masks") else None
            yield Mark(text, int(self.class_ids[place]), xyxy, mask)

    def draw(self, threshold: float = 0.0) -> Image.Image:
        """The image with the masks, boxes, labels and scores of objects with at least this score.

        A small image is enlarged until labels are legible, a large one is reduced to ``LARGEST_DRAWN`` pixels.
        """
        picture = self._picture()
        instances = self.above(threshold).found.instances(picture.shape[:2])
        return Image.fromarray(draw_detections(picture, instances, self.labels, score_threshold=0.0))


@dataclass(frozen=True, eq=False)
class Grounding(Detections):
    """What phrases mean in an image: for one phrase after the other its objects, best first.

    ``labels`` are the phrases. A score is objectness times the probability that the phrase is true of the object.
    """

    def of(self, phrase: str) -> list[Box]:
        """The objects of a phrase, best first."""
        return [box for box in self if box.label == phrase]


@dataclass(frozen=True, eq=False)
class Segmentation(_OfImage):
    """An image divided into segments.

    Attributes:
        labels: the names of things, then those of stuff.
        segments: the name and the score of each segment, best first.
        ids: int32 [H,W], at each pixel the place of its segment, from 1; 0 for none.
        semantic: int64 [H,W], at each pixel the place of the likeliest name in ``labels``.
    """

    labels: tuple[str, ...]
    segments: tuple[tuple[str, float], ...]
    ids: Tensor = field(repr=False)
    semantic: Tensor = field(repr=False)

    def __str__(self) -> str:
        return ", ".join(f"{name} {score:.2f}" for name, score in self.segments) or "nothing"

    def mask(self, place: int) -> np.ndarray:
        """The pixels of a segment, by its place in ``segments``: bool [H,W]."""
        return (self.ids == place + 1).numpy()

    def draw(self) -> Image.Image:
        """The image with its segments, their names and scores."""
        masks = torch.stack([self.ids == place + 1 for place in range(len(self.segments))] or [self.ids < 0])
        shown = masks[masks.any(2).any(1)]
        found = Instances(self.size, pred_masks=shown, pred_boxes=BitMasks(shown).get_bounding_boxes())
        found.pred_classes = torch.tensor([self.labels.index(name) for name, _ in self.segments], dtype=torch.int64)
        found.scores = torch.tensor([score for _, score in self.segments])
        return Image.fromarray(draw_detections(self.source.pixels(), found, self.labels, score_threshold=0.0))


@dataclass(frozen=True, eq=False)
class Classification(_OfImage):
    """Probabilities of labels for a whole image.

    Attributes:
        labels: the C names to choose from.
        probabilities: float32 [C], of sum 1.
    """

    labels: tuple[str, ...]
    probabilities: Tensor

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest labels with their probabilities, best first."""
        best = self.probabilities.topk(min(count, len(self.labels)))
        return [(self.labels[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist())]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.top(1)[0][0]

    def __str__(self) -> str:
        return ", ".join(f"{label} {probability:.0%}" for label, probability in self.top(3))

    def to_supervision(self) -> supervision.Classifications:
        """As ``supervision.Classifications``.

        Raises:
            UserError: the package supervision is not installed.
        """
        return _supervision().Classifications(
            class_id=np.arange(len(self.labels)), confidence=self.probabilities.numpy()
        )

    def draw(self) -> Image.Image:
        """The image above its three likeliest labels."""
        return self._captioned(str(self))


@dataclass(frozen=True, eq=False)
class Caption(_OfImage):
    """A caption of an image.

    Attributes:
        text: the caption.
        log_likelihood: the sum of log P of its words and of its end.
    """

    text: str
    log_likelihood: float

    def __str__(self) -> str:
        return self.text

    def to_coco(self, image_id: Any = None) -> dict[str, Any]:
        """In COCO's format of results. ``image_id`` is by default the image's name."""
        return {"image_id": self.name if image_id is None else image_id, "caption": self.text}

    def draw(self) -> Image.Image:
        """The image above its caption."""
        return self._captioned(self.text or "(no caption)")


class Match(NamedTuple):
    """A text or an image that was found, by its place and name, and its cosine, which need not decide the order."""

    place: int
    name: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Similarities of I images and T texts.

    A model whose task of retrieval has ``RERANK`` compares the best candidates by cosine again, as in evaluation, by
    the likelihood of the text as the image's caption. Lists begin with these K candidates, in the order of the second
    comparison, and go on with the others in the order of their cosines.

    Attributes:
        images: the names of the images.
        texts: the texts.
        similarities: cosines [I,T]; NaN for images that could not be read.
        best_images: [T,K] the places of each text's images that were compared again, best first; None without RERANK.
        best_texts: [I,K] the same of each image's texts. K may be another one.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    similarities: Tensor = field(repr=False)
    best_images: Tensor | None = field(default=None, repr=False)
    best_texts: Tensor | None = field(default=None, repr=False)

    def texts_of(self, image: int, count: int = 5) -> list[Match]:
        """The texts that fit an image best, given by its place."""
        return _best(self.similarities[image], self.best_texts, image, self.texts, count)

    def images_of(self, text: int | str, count: int = 5) -> list[Match]:
        """The images that fit a text best, given by itself or by its place."""
        place = self.texts.index(text) if isinstance(text, str) else text
        return _best(self.similarities[:, place], self.best_images, place, self.images, count)


def _best(row: Tensor, best: Tensor | None, query: int, names: Sequence[str], count: int) -> list[Match]:
    order = row.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
    if best is not None:
        order = list(dict.fromkeys([*best[query].tolist(), *order]))
    return [Match(i, names[i], row[i].item()) for i in order[:count] if not row[i].isnan()]


@dataclass(frozen=True)
class Completion:
    """A text whose hidden words were guessed.

    Attributes:
        text: the text with the likeliest words.
        words: for each hidden word the likeliest ones with their probabilities, best first.
    """

    text: str
    words: tuple[tuple[tuple[str, float], ...], ...]

    def __str__(self) -> str:
        return self.text


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise UserError("to_supervision() needs the package supervision: pip install supervision") from error
    return supervision
