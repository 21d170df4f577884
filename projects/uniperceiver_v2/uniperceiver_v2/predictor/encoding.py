"""Images on their way into the model: read, resized as in evaluation, put into batches of one size, encoded.

A kind of task sees an image in one of a few views: the whole image in detection's size, the square of classification,
or a square of its own for captioning and retrieval, if the configuration has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from ..config.ranges import LARGEST_SIDE
from ..data import ImageMapper
from ..data.mappers.captions import ReferenceMapper
from ..data.mappers.images import ClassificationMapper, DetectionMapper
from ..errors import UnreadableImage, UserError
from ..modeling.image_encoder import ImageEncoding
from ..tasks import ImageSizes
from .inputs import Source

WHOLE = "whole"  # the view that is encoded at once
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
    keeps the encoding of the whole image, some megabytes an image with the paper's models. Other views, such as the
    square of classification, are kept as pixels until the first question that needs them.

    Attributes:
        names: the images' paths, or their places among those that were given.
        failures: {place: sentence} of images that could not be read.
    """

    def __init__(self, model: object, sources: Sequence[Source], single: bool, failures: dict[int, str]):
        self.model, self.single, self.failures = model, single, failures
        self.sources = list(sources)
        self.batches: dict[str, list[Batch]] = {}  # by view
        self.waiting: dict[str, list[dict[str, Any]]] = {}  # samples of the views that nobody has asked for yet

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
        for view, samples in self.waiting.items():
            part.waiting[view] = [
                {**sample, "picture": replace(sample["picture"], place=places[sample["picture"].place])}
                for sample in samples
                if sample["picture"].place in places
            ]
        return part


@dataclass(frozen=True)
class Views:
    """How a model wants to see images.

    Args:
        mappers: those of evaluation by view. "whole" is among them.
        of_kind: the view of each kind of task that sees images.
        enough: so many pixels of a shorter side serve all views: twice the largest, as resizing averages pixels.
        image_format: "RGB" or "BGR", the order of channels that the model was trained with.
    """

    mappers: Mapping[str, ImageMapper]
    of_kind: Mapping[str, str]
    enough: int
    image_format: str = field(default="RGB")

    @classmethod
    def of(cls, cfg: CfgNode, settings: Mapping[str, Any]) -> Views:
        """Those of a configuration, with the settings of each kind of task."""
        mappers: dict[str, ImageMapper] = {WHOLE: DetectionMapper(cfg, "detection", (), is_train=False)}
        side = settings["classification"].tested_size
        mappers["square"] = ClassificationMapper("classification", (), cfg.INPUT.FORMAT, side)
        of_kind = {"classification": "square"}
        largest = max(cfg.INPUT.MIN_SIZE_TEST or LARGEST_SIDE, side)  # 0 resizes nothing
        for kind in ("captioning", "retrieval", "question_answering"):
            sizes = settings[kind].test_sizes
            if sizes["square"]:
                largest = max(largest, sizes["square"])
                of_kind[kind] = f"squeezed to {sizes['square']}"  # one view for both if they have one size
                mappers[of_kind[kind]] = ReferenceMapper(cfg, kind, **sizes)
        return cls(mappers, of_kind, 2 * largest, cfg.INPUT.FORMAT)

    def of_question(self, kind: str) -> str:
        """The view in which a kind of task sees images."""
        return self.of_kind.get(kind, WHOLE)

    def samples(
        self, sources: Iterable[Source], view: str, failures: dict[int, str], further: Sequence[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """{"image", "picture"} of each readable image, one after the other, so that one is open at a time.

        Args:
            sources: the images.
            view: what "image" shows.
            failures: gets {place: sentence} of the others.
            further: views to add below their names.
        """
        for place, source in enumerate(sources):
            try:
                pixels, size = source.reduced(self.enough)
                picture = Picture(place, source, size)
                if self.image_format == "BGR":
                    pixels = pixels[:, :, ::-1]
                sample = {"image": self._view(source, view, pixels), "picture": picture}
                sample |= {name: self._view(source, name, pixels) for name in further}
            except (UnreadableImage, UserError) as error:
                failures[place] = str(error)
                continue
            yield sample

    def _view(self, source: Source, view: str, pixels: np.ndarray) -> Tensor:
        try:
            return self.mappers[view].view(pixels)
        except UnreadableImage as error:
            raise UnreadableImage(f"{source.name}: {error}") from error
