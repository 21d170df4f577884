"""Images on their way into the model: read, resized as in evaluation, put into batches of one size, encoded.

A kind of task sees an image in one of two views: the whole image in detection's size, or the square of classification.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from ..data import ImageMapper
from ..data.mappers.images import ClassificationMapper, DetectionMapper
from ..errors import UnreadableImage, UserError
from ..modeling.image_encoder import ImageEncoding
from ..tasks import ImageSizes
from .inputs import Source

View = Literal["whole", "square"]
Batched = TypeVar("Batched")


@dataclass(frozen=True)
class Picture:
    """One image of a request: its place in the list, where it comes from, and its (height, width)."""

    place: int
    source: Source
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """B images of one size, encoded together."""

    pictures: list[Picture]
    encoding: ImageEncoding
    sizes: ImageSizes

    def select(self, places: dict[int, int]) -> Batch | None:
        """The images with these places {old: new}. None if there are none."""
        rows = [row for row, picture in enumerate(self.pictures) if picture.place in places]
        if not rows:
            return None
        pictures = [replace(self.pictures[row], place=places[self.pictures[row].place]) for row in rows]
        sizes = ImageSizes([self.sizes.images[row] for row in rows], self.sizes.padded)
        return Batch(pictures, _rows_of(self.encoding, rows), sizes)


def _rows_of(batched: Batched, rows: list[int]) -> Batched:
    """Images of a dataclass of tensors [B,...]."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        return _rows_of(value, rows) if is_dataclass(value) else value

    return replace(batched, **{f.name: of(getattr(batched, f.name)) for f in fields(batched)})  # type: ignore[type-var, arg-type]


class EncodedImages(Sequence["EncodedImages"]):
    """Images that a predictor has encoded, for any number of questions.

    All methods of the predictor take it in place of images. ``encoded[2]`` and ``encoded[1:3]`` are parts of it. It
    keeps the encoding of the whole image, some megabytes an image with the paper's models. The square of classification
    is kept as pixels until the first :meth:`~uniperceiver_v2.predictor.Predictor.classify`.

    Attributes:
        names: the images' paths, or their places among those that were given.
        failures: {place: sentence} of images that could not be read.
    """

    def __init__(self, model: object, sources: Sequence[Source], single: bool, failures: dict[int, str]):
        self.model, self.single, self.failures = model, single, failures
        self.sources = list(sources)
        self.batches: dict[View, list[Batch]] = {}
        self.squares: list[dict[str, Any]] = []  # samples of the view that nobody has asked for yet

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def __len__(self) -> int:
        return len(self.sources)

    def __repr__(self) -> str:
        return f"EncodedImages({self.names})"

    def __getitem__(self, index: Any) -> EncodedImages:
        chosen = range(len(self))[index]
        return self._part([chosen], True) if isinstance(chosen, int) else self._part(list(chosen), False)

    def readable(self) -> EncodedImages:
        """Those that could be read, without the others."""
        return self._part([place for place in range(len(self)) if place not in self.failures], False)

    def _part(self, kept: list[int], single: bool) -> EncodedImages:
        places = {old: new for new, old in enumerate(kept)}
        failures = {places[old]: sentence for old, sentence in self.failures.items() if old in places}
        part = EncodedImages(self.model, [self.sources[place] for place in kept], single, failures)
        for view, batches in self.batches.items():
            selected = (batch.select(places) for batch in batches)
            part.batches[view] = [batch for batch in selected if batch is not None]
        part.squares = [
            {**sample, "picture": replace(sample["picture"], place=places[sample["picture"].place])}
            for sample in self.squares
            if sample["picture"].place in places
        ]
        return part


@dataclass(frozen=True)
class Views:
    """How a model wants to see images.

    Args:
        whole, square: the mappers of evaluation.
        image_format: "RGB" or "BGR", the order of channels that the model was trained with.
    """

    whole: ImageMapper
    square: ImageMapper
    image_format: str = field(default="RGB")

    @classmethod
    def of(cls, cfg: CfgNode, square_size: int) -> Views:
        """Those of a configuration, with the side in pixels of classification's square."""
        whole = DetectionMapper(cfg, "detection", (), is_train=False)
        return cls(whole, ClassificationMapper("classification", (), cfg.INPUT.FORMAT, square_size), cfg.INPUT.FORMAT)

    def samples(
        self, sources: Iterable[Source], view: View, failures: dict[int, str], with_square: bool = False
    ) -> Iterator[dict[str, Any]]:
        """{"image", "picture"} of each readable image, one after the other, so that one is open at a time.

        Args:
            sources: the images.
            view: what "image" shows.
            failures: gets {place: sentence} of the others.
            with_square: whether to add classification's view as "square".
        """
        for place, source in enumerate(sources):
            try:
                pixels = source.pixels()
                picture = Picture(place, source, (pixels.shape[0], pixels.shape[1]))
                if self.image_format == "BGR":
                    pixels = pixels[:, :, ::-1]
                sample = {"image": self._view(source, view, pixels), "picture": picture}
                if with_square:
                    sample["square"] = self._view(source, "square", pixels)
            except (UnreadableImage, UserError) as error:
                failures[place] = str(error)
                continue
            yield sample

    def _view(self, source: Source, view: View, pixels: np.ndarray) -> Tensor:
        try:
            return (self.whole if view == "whole" else self.square).view(pixels)
        except UnreadableImage as error:
            raise UnreadableImage(f"{source.name}: {error}") from error
