"""The predictor: a trained model behind one method for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..data.datasets.texts import encode, tidy
from ..errors import UserError
from ..tasks.caption_likelihoods import caption_log_likelihoods, tokens_of_images
from ..tasks.region_captioning import of_regions
from .asking import OnError, check_on_error, report
from .encoding import Batch, EncodedImages
from .galleries import Gallery, compared_again
from .inputs import ImageLike, ImagesLike
from .results import Caption, Classification, Completion, Detections, Grounding, Retrieval, Segmentation
from .texts import complete, names_of
from .trained import TrainedModel

Texts = str | Sequence[str]
THRESHOLD = 0.3  # of scores, as in the pictures of a run
TEXTS_AT_A_TIME = 256


class Predictor(TrainedModel):
    """Asks a trained model about images and texts.

    - Images are paths, ``file:`` URLs, Pillow images, RGB arrays [H,W,3] and tensors [3,H,W], both of uint8 or of
      floats in 0..1, or a list of them of any sizes. A single image has a single answer, a list has a list.
    - An image's answer does not depend on the other images: each is resized as in evaluation, and only images of one
      resized size are encoded together.
    - Where images are asked for, :meth:`encode`'s result does, too. Then several questions cost one encoding.
    - If an image of a list cannot be used, the others are answered all the same. ``on_error="raise"`` then raises
      :class:`BadImages`, a ``UserError`` that names the bad files and has all answers as ``results``. With "skip" the
      bad files are logged and have None in their places. A single bad image always raises.

    Args:
        config: a YAML file of settings, such as a run's ``config.yaml``, or a configuration.
        weights: a checkpoint, ``.pth`` or ``.safetensors``; by default ``MODEL.WEIGHTS`` of the settings.
        device: "cpu", "cuda", ...; by default ``MODEL.DEVICE``.
        autocast: "bfloat16" or "float16" to compute in half precision where that is safe; None for float32.
        tasks: names of tasks in the settings. Each answers for its kind. By default a kind's first trained task does.
        batch_size: the number of images that are encoded together, by default ``TEST.IMS_PER_BATCH``.

    Raises:
        UserError: the settings or the weights cannot be used.
    """

    def encode(self, images: ImageLike | ImagesLike, *, on_error: OnError = "raise") -> EncodedImages:
        """Encodes images once, for several questions.

        Raises:
            BadImages: images cannot be used; its ``results`` are the others, encoded.
        """
        check_on_error(on_error)
        encoded = self._asker.encode(images)
        report(encoded.failures, encoded, on_error, encoded.single)
        return encoded

    @overload
    def detect(self, images: ImageLike, labels: Texts | None = ..., *, threshold: float = ...) -> Detections: ...
    @overload
    def detect(
        self,
        images: ImagesLike | EncodedImages,
        labels: Texts | None = ...,
        *,
        threshold: float = ...,
        on_error: Literal["raise"] = ...,
    ) -> list[Detections]: ...
    @overload
    def detect(
        self,
        images: ImagesLike | EncodedImages,
        labels: Texts | None = ...,
        *,
        threshold: float = ...,
        on_error: Literal["skip"],
    ) -> list[Detections | None]: ...

    def detect(
        self, images: Any, labels: Texts | None = None, *, threshold: float = THRESHOLD, on_error: OnError = "raise"
    ) -> Any:
        """Objects with boxes and masks.

        Args:
            images: as the class says.
            labels: names to choose from, which need not be labels of the training; by default those of the training.
            threshold: objects with a lower score are left out; 0 keeps the ``TEST.DETECTIONS_PER_IMAGE`` best.
            on_error: as the class says.
        """
        task = self._tasks["detection"]
        names = task.labels if labels is None else names_of(labels, "labels")
        ids = task.category_ids if labels is None else None
        texts = task.texts_of(names)

        def answer(batch: Batch) -> Iterator[Detections]:
            found = task.find(self.model, batch.encoding, batch.sizes, texts)
            for picture, pairs in zip(batch.pictures, found, strict=True):
                kept = pairs[pairs.scores >= threshold].to("cpu")
                yield Detections(picture.source.name, picture.size, picture.source, names, kept, ids)

        return self._asker.ask(images, "detection", answer, on_error)

    @overload
    def classify(self, images: ImageLike, labels: Texts | None = ...) -> Classification: ...
    @overload
    def classify(
        self, images: ImagesLike | EncodedImages, labels: Texts | None = ..., *, on_error: Literal["raise"] = ...
    ) -> list[Classification]: ...
    @overload
    def classify(
        self, images: ImagesLike | EncodedImages, labels: Texts | None = ..., *, on_error: Literal["skip"]
    ) -> list[Classification | None]: ...

    def classify(self, images: Any, labels: Texts | None = None, *, on_error: OnError = "raise") -> Any:
        """The probability of each label for the whole image, more exactly for the square at its centre.

        Args:
            images, on_error: as the class says.
            labels: names to choose from; by default those of the training.
        """
        task = self._tasks["classification"]
        names = task.labels if labels is None else names_of(labels, "labels")

        def answer(batch: Batch) -> Iterator[Classification]:
            rows = task.probabilities(self.model, batch.encoding, names).float().cpu()
            for picture, row in zip(batch.pictures, rows, strict=True):
                yield Classification(picture.source.name, picture.size, picture.source, names, row)

        return self._asker.ask(images, "classification", answer, on_error)

    @overload
    def segment(self, images: ImageLike, things: Texts = ..., stuff: Texts = ...) -> Segmentation: ...
    @overload
    def segment(
        self,
        images: ImagesLike | EncodedImages,
        things: Texts = ...,
        stuff: Texts = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> list[Segmentation]: ...
    @overload
    def segment(
        self, images: ImagesLike | EncodedImages, things: Texts = ..., stuff: Texts = ..., *, on_error: Literal["skip"]
    ) -> list[Segmentation | None]: ...

    def segment(self, images: Any, things: Texts = (), stuff: Texts = (), *, on_error: OnError = "raise") -> Any:
        """The image divided into segments.

        Args:
            images, on_error: as the class says.
            things: names of what is counted, such as "dog"; each thing is a segment.
            stuff: names of what is not counted, such as "sky"; all of a name is one segment. By default none.
        """
        task = self._tasks["segmentation"]
        counted, uncounted = ((x,) if isinstance(x, str) else tuple(x) for x in (things, stuff))
        names = names_of(counted + uncounted, "things and stuff")
        is_stuff = (False,) * len(counted) + (True,) * len(uncounted)
        texts = task.texts_of(names)

        def answer(batch: Batch) -> Iterator[Segmentation]:
            sizes = [picture.size for picture in batch.pictures]
            found = task.segment(self.model, batch.encoding, batch.sizes, texts, is_stuff, sizes)
            for picture, its in zip(batch.pictures, found, strict=True):
                segments = [(names[s["category_id"]], s["score"]) for s in its.segments]
                maps = its.ids.cpu(), its.semantic.cpu()
                yield Segmentation(picture.source.name, picture.size, picture.source, names, tuple(segments), *maps)

        return self._asker.ask(images, "segmentation", answer, on_error)

    @overload
    def answer(self, images: ImageLike, question: str, answers: Texts) -> Classification: ...
    @overload
    def answer(
        self, images: ImagesLike | EncodedImages, question: str, answers: Texts, *, on_error: Literal["raise"] = ...
    ) -> list[Classification]: ...
    @overload
    def answer(
        self, images: ImagesLike | EncodedImages, question: str, answers: Texts, *, on_error: Literal["skip"]
    ) -> list[Classification | None]: ...

    def answer(self, images: Any, question: str, answers: Texts, *, on_error: OnError = "raise") -> Any:
        """The probability of each answer to a question about the image, such as "what color is the seven?".

        Args:
            images, on_error: as the class says.
            question: asked of every image.
            answers: to choose from.
        """
        task = self._tasks["question_answering"]
        names = names_of(answers, "answers")
        ids = [encode(self.model.text_encoder.tokenizer, tidy(text)) for text in names_of([question], "questions")]

        def answer(batch: Batch) -> Iterator[Classification]:
            rows = task.likelihoods(self.model, batch.encoding, [ids] * len(batch.pictures), names)
            for picture, row in zip(batch.pictures, rows.softmax(-1).float().cpu(), strict=True):
                yield Classification(picture.source.name, picture.size, picture.source, names, row)

        return self._asker.ask(images, "question_answering", answer, on_error)

    @overload
    def caption(self, images: ImageLike, beams: int | None = ...) -> Caption: ...
    @overload
    def caption(
        self, images: ImagesLike | EncodedImages, beams: int | None = ..., *, on_error: Literal["raise"] = ...
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, images: ImagesLike | EncodedImages, beams: int | None = ..., *, on_error: Literal["skip"]
    ) -> list[Caption | None]: ...

    def caption(self, images: Any, beams: int | None = None, *, on_error: OnError = "raise") -> Any:
        """A caption of each image, found with this number of beams, by default the task's ``BEAM_SIZE``. One beam is
        greedy and the fastest, and chooses nothing where the task has ``RERANK``."""
        if beams is not None and beams < 1:
            raise UserError(f"beams are 1 or more, not {beams}")
        task = self._tasks["captioning"]

        def answer(batch: Batch) -> Iterator[Caption]:
            captions = task.generate(self.model, batch.encoding, beams)
            for picture, (text, log_likelihood) in zip(batch.pictures, captions, strict=True):
                yield Caption(picture.source.name, picture.size, picture.source, text, log_likelihood)

        return self._asker.ask(images, "captioning", answer, on_error)

    def describe(
        self, images: ImageLike | ImagesLike | EncodedImages, boxes: Sequence[Any], beams: int | None = None
    ) -> list[list[Caption]]:
        """Captions of regions, such as the boxes of :meth:`detect`.

        Args:
            images: as the class says.
            boxes: of each image a list of (x0, y0, x1, y1) in its pixels, at least one. For a single image, too, a list
                with its list.
            beams: as in :meth:`caption`.

        Returns:
            for each image, a caption of each of its boxes.
        """
        task = self._tasks["region_captioning"]
        given = [torch.as_tensor(own, dtype=torch.float32).reshape(-1, 4) for own in boxes]

        def answer(batch: Batch) -> Iterator[list[Caption]]:
            own = [
                given[picture.place] / torch.tensor([*picture.size[::-1], *picture.size[::-1]])
                for picture in batch.pictures
            ]
            captions = iter(task.generate(self.model, of_regions(batch.encoding, own), beams))
            for picture, of_image in zip(batch.pictures, own, strict=True):
                found = [next(captions) for _ in of_image]
                yield [Caption(picture.source.name, picture.size, picture.source, *caption) for caption in found]

        request = self._asker.request(images, "region_captioning")
        if len(given) != len(request.sources) or not all(len(own) for own in given):
            raise UserError(f"{len(request.sources)} images need as many lists of boxes, each with at least one")
        found = self._asker.ask(images, "region_captioning", answer, "raise")
        return [found] if request.single else found

    @overload
    def ground(self, images: ImageLike, phrases: Texts, *, threshold: float = ...) -> Grounding: ...
    @overload
    def ground(
        self,
        images: ImagesLike | EncodedImages,
        phrases: Texts,
        *,
        threshold: float = ...,
        on_error: Literal["raise"] = ...,
    ) -> list[Grounding]: ...
    @overload
    def ground(
        self, images: ImagesLike | EncodedImages, phrases: Texts, *, threshold: float = ..., on_error: Literal["skip"]
    ) -> list[Grounding | None]: ...

    def ground(self, images: Any, phrases: Texts, *, threshold: float = THRESHOLD, on_error: OnError = "raise") -> Any:
        """The objects that phrases mean, such as "the red seven on the left". A phrase may mean several, or nothing.

        Args:
            images, on_error: as the class says.
            phrases: asked of every image. Their scores do not depend on each other.
            threshold: objects with a lower score are left out; 0 keeps ``PROPOSALS_PER_PHRASE`` of each phrase.
        """
        task = self._tasks["grounding"]
        names = names_of(phrases, "phrases")

        def answer(batch: Batch) -> Iterator[Grounding]:
            found = task.find(self.model, batch.encoding, batch.sizes, [names] * len(batch.pictures))
            for picture, pairs in zip(batch.pictures, found, strict=True):
                kept = pairs[pairs.scores >= threshold].to("cpu")
                yield Grounding(picture.source.name, picture.size, picture.source, names, kept)

        return self._asker.ask(images, "grounding", answer, on_error)

    def embed_images(self, images: ImageLike | ImagesLike | EncodedImages, *, on_error: OnError = "raise") -> Tensor:
        """Features float32 [I,d] of length 1. Products with those of texts are cosines.

        With ``on_error="skip"``, bad images have rows of NaN.
        """
        check_on_error(on_error)
        embedded = self._embed(images, with_tokens=False)
        report(embedded.failures, embedded.features, on_error, embedded.single)
        return embedded.features

    def gallery(self, images: ImageLike | ImagesLike | EncodedImages, *, on_error: OnError = "raise") -> Gallery:
        """Images for :meth:`retrieve` alone, encoded once and kept small, for several searches among them.

        Raises:
            BadImages: images cannot be used; its ``results`` are all, and no search finds the bad ones.
        """
        check_on_error(on_error)
        embedded = self._embed(images, with_tokens=self._candidates > 0)
        report(embedded.failures, embedded, on_error, embedded.single)
        return embedded

    def _embed(self, images: Any, with_tokens: bool) -> Gallery:
        task, width = self._tasks["retrieval"], self.cfg.MODEL.UNIPERCEIVER_V2.EMBED_DIM
        request = self._asker.request(images, "retrieval")
        names = tuple(source.name for source in request.sources)
        features = torch.full((len(names), width), torch.nan)
        tokens = [torch.empty(0, width, dtype=torch.half)] * (len(names) if with_tokens else 0)
        with self._asker.predicting():
            for batch in request.batches:
                places = [picture.place for picture in batch.pictures]
                features[places] = task.image_features(self.model, batch.encoding).cpu()
                if with_tokens:
                    for place, own in zip(places, tokens_of_images(batch.encoding), strict=True):
                        tokens[place] = own.half().cpu()  # they fill most of the memory
        return Gallery(self.model, names, features, tuple(tokens), request.failures, request.single)

    @property
    def _candidates(self) -> int:
        count: int = self._tasks["retrieval"].settings.candidates
        return count

    def embed_texts(self, texts: Texts) -> Tensor:
        """Features float32 [T,d] of length 1."""
        return self._embed_ids(self._ids_of(names_of(texts, "texts", unique=False)))

    def _ids_of(self, texts: Sequence[str]) -> list[Tensor]:
        return [encode(self.model.text_encoder.tokenizer, tidy(text)) for text in texts]

    def _embed_ids(self, ids: Sequence[Tensor]) -> Tensor:
        chunks = [ids[start : start + TEXTS_AT_A_TIME] for start in range(0, len(ids), TEXTS_AT_A_TIME)]
        with self._asker.predicting():
            return torch.cat([self._tasks["retrieval"].text_features(self.model, chunk).cpu() for chunk in chunks])

    def retrieve(
        self, images: ImageLike | ImagesLike | EncodedImages | Gallery, texts: Texts, *, on_error: OnError = "raise"
    ) -> Retrieval:
        """Compares images with texts, to find the best of either side for each of the other.

        The order is that of evaluation: if the task of retrieval has ``RERANK``, the best candidates by cosine are
        compared again by the likelihood of the text as the image's caption, see :class:`Retrieval`.

        Args:
            images, on_error: as the class says; also what :meth:`gallery` gave.
            texts: the texts. If there are several, each image's best ones are compared again, too, which takes longer.
        """
        check_on_error(on_error)
        asked = names_of(texts, "texts", unique=False)
        gallery = images if isinstance(images, Gallery) else self._embed(images, with_tokens=self._candidates > 0)
        if gallery.model is not self.model:
            raise UserError("these images were encoded by another model")
        ids = self._ids_of(asked)
        cosines = gallery.features @ self._embed_ids(ids).T

        def log_likelihoods(pairs: Tensor) -> Tensor:
            with self._asker.predicting():
                return caption_log_likelihoods(self.model, gallery.tokens, ids, pairs)

        temperature = self.model.likelihood.temperature.item()
        best = compared_again(cosines, asked, self._candidates, temperature, log_likelihoods)
        found = Retrieval(gallery.names, asked, cosines, *best)
        report(gallery.failures, found, on_error, gallery.single)
        return found

    @overload
    def complete(self, texts: str, count: int = ...) -> Completion: ...
    @overload
    def complete(self, texts: Sequence[str], count: int = ...) -> list[Completion]: ...

    def complete(self, texts: str | Sequence[str], count: int = 5) -> Completion | list[Completion]:
        """Guesses the hidden words of texts such as "a red <mask> in the top left".

        Args:
            texts: a text, or a list of them.
            count: of guesses for each hidden word.

        Raises:
            UserError: a text has no ``<mask>``, or is longer than the text encoder reads.
        """
        asked = names_of(texts, "texts", unique=False)
        with self._asker.predicting():
            found = complete(self.model, self._tasks["language_modelling"], asked, count)
        return found[0] if isinstance(texts, str) else found
