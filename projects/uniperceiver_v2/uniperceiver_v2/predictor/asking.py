"""Asks a model about images: batch by batch, in the images' order, with the bad ones set apart."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from ..data.loading.test import of_one_size
from ..errors import UserError
from ..tasks import ImageSizes
from .encoding import WHOLE, Batch, EncodedImages, Views
from .inputs import BadImages, Source, sources_of

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
OnError = Literal["raise", "skip"]


@dataclass
class Request:
    """Images of a call.

    Attributes:
        sources: the images.
        single: whether it was one image and no list.
        failures: {place: sentence} of the images that could not be read, complete when all batches are through.
        batches: the others, encoded when they are asked for.
    """

    sources: list[Source]
    single: bool
    failures: dict[int, str]
    batches: Iterable[Batch]


class Asker:
    """A model with the settings of its calls.

    Args:
        model: a UniPerceiverV2 in evaluation mode.
        views: how it sees images.
        autocast: "bfloat16", "float16" or None.
        batch_size: the number of images that are encoded together.
    """

    def __init__(self, model: Any, views: Views, autocast: str | None, batch_size: int):
        if autocast not in (None, "bfloat16", "float16"):
            raise UserError(f'autocast is "bfloat16", "float16" or None, not {autocast!r}')
        if batch_size < 1:
            raise UserError(f"a batch has at least 1 image, not {batch_size}")
        self.model, self.views, self.autocast, self.batch_size = model, views, autocast, batch_size

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """Without gradients, in the wanted precision."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.autocast is not None:
                stack.enter_context(torch.autocast(self.model.device.type, dtype=getattr(torch, self.autocast)))
            yield

    def encode(self, images: Any) -> EncodedImages:
        """The readable images, encoded. The others are in its ``failures``."""
        sources, single = sources_of(images)
        encoded = EncodedImages(self.model, sources, single, {})
        batches = encoded.batches[WHOLE] = []
        further = [view for view in self.views.mappers if view != WHOLE]
        encoded.waiting = {view: [] for view in further}
        with self.predicting():
            samples = self.views.samples(sources, WHOLE, encoded.failures, further)
            for alike in of_one_size(([sample] for sample in samples), self.batch_size):
                for view in further:
                    encoded.waiting[view] += [{"image": x.pop(view), "picture": x["picture"]} for x in alike]
                batches.append(self._batch(alike))
        return encoded

    def request(self, images: Any, kind: str) -> Request:
        """Images in the view of a kind of task. Their batches have to be used within :meth:`predicting`."""
        view = self.views.of_question(kind)
        if not isinstance(images, EncodedImages):
            sources, single = sources_of(images)
            failures: dict[int, str] = {}
            samples = ([sample] for sample in self.views.samples(sources, view, failures))
            return Request(sources, single, failures, map(self._batch, of_one_size(samples, self.batch_size)))
        if images.model is not self.model:
            raise UserError("these images were encoded by another model")
        if view in images.waiting:
            with self.predicting():
                alike = of_one_size([images.waiting[view]], self.batch_size)
                images.batches[view] = [self._batch(samples) for samples in alike]
            del images.waiting[view]
        return Request(images.sources, images.single, images.failures, images.batches[view])

    def ask(self, images: Any, kind: str, answer: Callable[[Batch], Iterable[Answer]], on_error: OnError) -> Any:
        """An answer for each image, or the answer for a single one.

        Args:
            images: what the user gave.
            kind: of task, which decides the view that is encoded.
            answer: gives the answers for the images of a batch, in their order.
            on_error: "raise" or "skip".

        Raises:
            BadImages: images cannot be used.
        """
        check_on_error(on_error)
        request = self.request(images, kind)
        found: dict[int, Answer] = {}
        with self.predicting():
            for batch in request.batches:
                found.update(zip((picture.place for picture in batch.pictures), answer(batch), strict=True))
        results = [found.get(place) for place in range(len(request.sources))]
        report(request.failures, results, on_error, request.single)
        return results[0] if request.single else results

    def _batch(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        images = self.model.preprocess(list(samples))
        encoding, _ = self.model.image_encoder(images)
        return Batch([sample["picture"] for sample in samples], encoding, ImageSizes.of(images))


def check_on_error(on_error: str) -> None:
    """
    Raises:
        UserError: it is neither "raise" nor "skip".
    """
    if on_error not in ("raise", "skip"):
        raise UserError(f'on_error is "raise" or "skip", not {on_error!r}')


def report(failures: dict[int, str], results: Any, on_error: OnError, single: bool) -> None:
    """Raise or log the sentences about images that cannot be used.

    Raises:
        BadImages: there are some, and ``on_error`` is "raise" or it is a single image.
    """
    if failures and (single or on_error == "raise"):
        raise BadImages(dict(sorted(failures.items())), results)
    for _, sentence in sorted(failures.items()):
        logger.warning("skipped: %s", sentence)
