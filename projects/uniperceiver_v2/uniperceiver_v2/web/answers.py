"""Questions about uploaded pictures. A picture is encoded once, whichever questions follow."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ..errors import UnreadableImage, UserError
from ..predictor import (
    THRESHOLD,
    Caption,
    Classification,
    Detections,
    EncodedImages,
    Gallery,
    Grounding,
    Match,
    Predictor,
    learned,
    trained_kinds,
)
from ..reading import READ_ERRORS, pixels_of
from ..reading.images import opened_image
from ..visualization import draw_marks, fitted
from .limits import Limits, megabytes
from .worker import Deadline, Worker

CLASSES_SHOWN = 5
Answer = TypeVar("Answer")


class Found(NamedTuple):
    """Objects for people: the picture with them, rows of (name, score, x0, y0, x1, y1), and a sentence."""

    picture: Image.Image
    rows: list[list[Any]]
    said: str


class Answers:
    """Answers to the questions of the page.

    Every method raises ``UserError`` or ``UnreadableImage`` with a sentence for the visitor.

    Args:
        predictor: the model.
        limits: how much a visitor may ask.
        name: of the model, for people.
    """

    def __init__(self, predictor: Predictor, limits: Limits | None = None, name: str = ""):
        self.predictor, self.limits, self.name = predictor, limits or Limits(), name
        self.worker = Worker()
        self._encodings: OrderedDict[str, EncodedImages] = OrderedDict()
        self._lock = threading.Lock()  # of the encodings
        self.learned = learned(predictor)
        self.trained = trained_kinds(predictor)

    def labels(self, kind: str) -> tuple[str, ...]:
        """The names of the training, or none if they are not known here."""
        with contextlib.suppress(UserError):
            return self.predictor.labels(kind)
        return ()

    def detect(self, path: str | None, labels: str | None = "", threshold: float = THRESHOLD) -> Found:
        """Objects with boxes and masks. Without labels, those of the training are looked for."""
        names = self._labels(labels, "detection")
        score = _share(threshold)
        found, encoded = self._ask(path, lambda images: self.predictor.detect(images, names, threshold=score)[0])
        return _found(found, encoded, f"nothing with a score of {score:.0%} or more")

    def ground(self, path: str | None, phrases: str | None, threshold: float = THRESHOLD) -> Found:
        """The objects that phrases mean."""
        asked = self.limits.list_of(phrases, "phrases")
        if not asked:
            raise UserError('type phrases to look for, such as "the red seven, a blue two"')
        score = _share(threshold)
        found, encoded = self._ask(path, lambda images: self.predictor.ground(images, asked, threshold=score)[0])
        missing = [phrase for phrase in asked if not found.of(phrase)]
        shown = _found(found, encoded, f"nothing with a score of {score:.0%} or more")
        if missing and len(found):
            return shown._replace(said=f"{shown.said} Nothing for: {', '.join(missing)}.")
        return shown

    def classify(self, path: str | None, labels: str | None = "") -> dict[str, float]:
        """{name: probability} of the likeliest names, best first."""
        names = self._labels(labels, "classification")
        found, _ = self._ask(path, lambda images: self.predictor.classify(images, names)[0])
        assert isinstance(found, Classification)
        return dict(found.top(CLASSES_SHOWN))

    def caption(self, path: str | None) -> tuple[str, str]:
        """A caption, and what its likelihood is."""
        found, _ = self._ask(path, lambda images: self.predictor.caption(images)[0])
        assert isinstance(found, Caption)
        number = f"{found.log_likelihood:.2f}".replace("-", "−")
        share = math.exp(min(0.0, found.log_likelihood))
        return found.text or "(no caption)", f"log-likelihood {number}: the model gives this sentence {_percent(share)}"

    def feature_of(self, path: str | None) -> np.ndarray:
        """A picture's feature of retrieval, float32 [d] of length 1."""
        features, _ = self._ask(path, self.predictor.embed_images)
        return features[0].numpy()

    @property
    def compared_again(self) -> int:
        """How many of the pictures with the largest cosines a search by text compares again; 0 for none."""
        count: int = self.predictor.task("retrieval").settings.candidates
        return count

    def search(self, gallery: Gallery, text: str | None, count: int) -> list[Match]:
        """The pictures that fit a text best, in the order of ``Predictor.retrieve``."""
        words = self.limits.text_of(text, "text")
        if not words:
            raise UserError('type what to look for, such as "a red seven to the left of a blue two"')
        step = lambda: self.predictor.retrieve(gallery, words)  # noqa: E731
        return self.worker.run(step, Deadline(self.limits.seconds)).images_of(0, count)

    def _labels(self, text: str | None, kind: str) -> list[str] | None:
        names = self.limits.list_of(text, "labels")
        if not names and not self.labels(kind):
            raise UserError("the names of the training are not known here: type labels")
        return names or None

    def _ask(self, path: str | None, question: Callable[[EncodedImages], Answer]) -> tuple[Answer, EncodedImages]:
        deadline = Deadline(self.limits.seconds)
        encoded = self.encoded(path, deadline)
        return self.worker.run(lambda: question(encoded), deadline), encoded

    def encoded(self, path: str | None, deadline: Deadline) -> EncodedImages:
        """A file's encoding, which is kept for the next questions about the same content."""
        if not path:
            raise UserError("choose a picture first: upload one, or pick an example")
        content = _content_of(path, self.limits)
        key = hashlib.sha256(content).hexdigest()
        with self._lock:
            if key in self._encodings:
                self._encodings.move_to_end(key)
                return self._encodings[key]
        deadline.left()
        pixels = pixels_of_content(content, os.path.basename(path), self.limits)
        encoded = self.worker.run(lambda: self.predictor.encode([pixels]), deadline)
        with self._lock:
            self._encodings[key] = encoded
            while len(self._encodings) > 1 and self._too_many():
                self._encodings.popitem(last=False)
        return encoded

    def _too_many(self) -> bool:
        areas = [math.prod(encoded.sources[0].value.shape[:2]) for encoded in self._encodings.values()]
        return len(areas) > self.limits.kept_encodings or sum(areas) > self.limits.kept_pixels

    def close(self) -> None:
        self.worker.close()


def _content_of(path: str, limits: Limits) -> bytes:
    name = os.path.basename(path)
    try:
        size = os.path.getsize(path)
        if size > limits.upload_bytes:
            raise UserError(f"{name} has {megabytes(size)}: this page takes {megabytes(limits.upload_bytes)} at most")
        with open(path, "rb") as file:
            return file.read(limits.upload_bytes)
    except OSError as error:
        raise UserError(f"{name} is not on the server any more: upload it again") from error


def pixels_of_content(content: bytes, name: str, limits: Limits) -> np.ndarray:
    """The pixels of a picture file, uint8 [H,W,3]. Its header is checked before anything is decoded.

    Raises:
        UnreadableImage: it cannot be read. The message has ``name``.
        UserError: it has too many pixels.
    """
    try:
        with opened_image(content) as image:
            if math.prod(image.size) > limits.pixels:
                count = f"{math.prod(image.size) / 1e6:.3g} megapixels ({image.width} x {image.height})"
                raise UserError(f"{name} has {count}: this page takes {limits.pixels / 1e6:.3g} megapixels at most")
            return pixels_of(image, "RGB")
    except READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


def _share(threshold: Any) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError(f"the threshold is a score in 0..1, not {threshold!r:.40}")
    return float(threshold)


def _found(found: Detections | Grounding, encoded: EncodedImages, nothing: str) -> Found:
    picture = fitted(encoded.sources[0].pixels())
    rows = [[box.label, round(box.score, 3), *(round(value, 1) for value in box.xyxy)] for box in found]
    count = f"{len(rows)} object{'s' * (len(rows) != 1)}" if rows else nothing
    return Found(draw_marks(picture, found.marks(picture)), rows, f"{count[0].upper()}{count[1:]}.")


def _percent(share: float) -> str:
    return f"a probability of {100 * share:.2g}%" if share >= 1e-4 else "a probability below 0.01%"
