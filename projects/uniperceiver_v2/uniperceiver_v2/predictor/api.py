"""The predictor: a trained model behind one method for each question."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from torch import Tensor

from ..data.datasets.texts import encode, tidy
from ..errors import UserError, nearest
from ..kinds import KINDS, configured_task
from ..meta_arch import UniPerceiverV2
from ..tasks import NamingTask
from ..tasks.region_captioning import of_regions
from .asking import Asker, OnError, Request, check_on_error, report
from .encoding import Batch, EncodedImages, Views
from .inputs import ImageLike, ImagesLike
from .pretrained import (
    CARD,
    load_files,
    load_weights,
    read_description,
    save_files,
    settings_for_prediction,
    zoo_directory,
)
from .results import Caption, Classification, Completion, Detections, Grounding, Retrieval, Segmentation
from .texts import complete, names_of

Texts = str | Sequence[str]
THRESHOLD = 0.3  # of scores, as in the pictures of a run
TEXTS_AT_A_TIME = 256


class Predictor(
    ModelHubMixin,
    library_name="uniperceiver_v2",
    license="apache-2.0",
    tags=["object-detection", "image-segmentation", "image-to-text", "uniperceiver_v2"],
    paper_url="https://doi.org/10.1109/CVPR52729.2023.00264",
    model_card_template=CARD,
):
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

    def __init__(
        self,
        config: str | os.PathLike[str] | CfgNode,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        autocast: str | None = None,
        tasks: Sequence[str] = (),
        batch_size: int | None = None,
    ):
        cfg = settings_for_prediction(config, device)
        path = weights or cfg.MODEL.WEIGHTS
        if not path:
            raise UserError("a predictor needs weights: name a checkpoint, or set MODEL.WEIGHTS")
        model = build_model(cfg)
        load_weights(model, path)
        self._set_up(cfg, model, autocast, tasks, batch_size)

    def _set_up(
        self,
        cfg: CfgNode,
        model: Any,
        autocast: str | None = None,
        tasks: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, UniPerceiverV2):
            raise UserError(f"a predictor needs a UniPerceiverV2, not a {type(model).__name__}")
        self.cfg, self.model = cfg, model.eval()
        self._tasks: dict[str, Any] = {kind: model.tasks[kind] for kind in KINDS}
        for name in tasks:
            if name not in cfg.TASKS or name == "NAMES":
                raise UserError(
                    f"no task {name!r} in the settings{nearest(name, [x for x in cfg.TASKS if x != 'NAMES'])}"
                )
            self._tasks[configured_task(cfg, name).kind.name] = model.tasks[name]
        views = Views.of(cfg, {kind: task.settings for kind, task in self._tasks.items()})
        size = cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size
        self._asker = Asker(self.model, views, autocast, size)

    @classmethod
    def from_model(cls, model: Any, cfg: CfgNode, **options: Any) -> Predictor:
        """A predictor around a model that is built already. Options are those of the class but ``device``."""
        predictor = cls.__new__(cls)
        predictor._set_up(cfg, model, **options)
        return predictor

    @classmethod
    def from_zoo(cls, name: str, **options: Any) -> Predictor:
        """A model of the zoo, by its name. Options are those of the class.

        Raises:
            UserError: there is no such model. The message lists those that there are.
        """
        return cls.from_pretrained(zoo_directory(name), **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # mypy knows no **options of the mixin
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> Predictor:
        """A model that :meth:`save_pretrained` wrote: a directory, for which no network is asked, or else a repository
        of the Hugging Face Hub.

        Options are those of the class, and huggingface_hub's own (``revision``, ``token``, ...).

        Raises:
            UserError: there is no such model, or it cannot be used.
        """
        name = os.path.expanduser(os.fspath(pretrained_model_name_or_path))
        if os.path.isdir(name):
            read_description(Path(name))
        elif os.path.isabs(name) or name.startswith(".") or name.count("/") != 1:
            raise UserError(f"there is no directory {name}")
        try:
            return super().from_pretrained(name, **options)
        except (OSError, ValueError) as error:  # huggingface_hub's
            reason = " ".join(str(error).split())
            raise UserError(f"{name} is no directory, and cannot be fetched from the Hub: {reason}") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str | None = None, **options: Any) -> Predictor:
        fetching = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        asked = {key: options.pop(key, None) for key in fetching}
        directory = model_id if os.path.isdir(model_id) else snapshot_download(model_id, **asked)
        kept = {key: value for key, value in options.items() if key in ("autocast", "tasks", "batch_size")}
        return cls.from_model(*reversed(load_files(Path(directory), device)), **kept)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_files(save_directory, self.cfg, self.model)

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """The model card. Keywords replace what it says: ``title``, ``directory``, ``tasks``, ``datasets``."""
        trained = [configured_task(self.cfg, name) for name in self.cfg.TASKS.NAMES]
        names = sorted({name for task in trained for name in task.settings.datasets})
        told = {
            "title": "Uni-Perceiver v2",
            "directory": "path/to/this/directory",
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "tasks": ", ".join(task.kind.name for task in trained) or "none are named",
            "datasets": ", ".join(names) or "none are named",
            "labels": {kind: ", ".join(task.labels) for kind, task in self._naming_tasks()},
            "licence": self._hub_mixin_info.model_card_data.license,
        }
        return super().generate_model_card(**{**told, **kwargs})

    def _naming_tasks(self) -> Iterator[tuple[str, NamingTask]]:
        for kind, task in self._tasks.items():
            with contextlib.suppress(UserError):  # its data is not here
                if isinstance(task, NamingTask) and task.labels:
                    yield kind, task

    def labels(self, kind: str = "detection") -> tuple[str, ...]:
        """The names that the model was trained with, for "detection" or "classification".

        Raises:
            UserError: they are not known here.
        """
        names: tuple[str, ...] = self._tasks[kind].labels
        return names

    def task(self, kind: str) -> Any:
        """The task that answers for a kind, such as "captioning". It has the task's ``settings``."""
        return self._tasks[kind]

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
    def caption(self, images: ImageLike, beams: int = ...) -> Caption: ...
    @overload
    def caption(
        self, images: ImagesLike | EncodedImages, beams: int = ..., *, on_error: Literal["raise"] = ...
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, images: ImagesLike | EncodedImages, beams: int = ..., *, on_error: Literal["skip"]
    ) -> list[Caption | None]: ...

    def caption(self, images: Any, beams: int = 3, *, on_error: OnError = "raise") -> Any:
        """A caption of each image, found with this number of beams; 1 is greedy and the fastest."""
        if beams < 1:
            raise UserError(f"beams are 1 or more, not {beams}")
        task = self._tasks["captioning"]

        def answer(batch: Batch) -> Iterator[Caption]:
            captions = task.generate(self.model, batch.encoding, beams)
            for picture, (text, log_likelihood) in zip(batch.pictures, captions, strict=True):
                yield Caption(picture.source.name, picture.size, picture.source, text, log_likelihood)

        return self._asker.ask(images, "captioning", answer, on_error)

    def describe(
        self, images: ImageLike | ImagesLike | EncodedImages, boxes: Sequence[Any], beams: int = 3
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
        request, features = self._embed(images)
        report(request.failures, features, on_error, request.single)
        return features

    def _embed(self, images: Any) -> tuple[Request, Tensor]:
        request = self._asker.request(images, "retrieval")
        features = torch.full((len(request.sources), self.cfg.MODEL.UNIPERCEIVER_V2.EMBED_DIM), torch.nan)
        with self._asker.predicting():
            for batch in request.batches:
                found = self._tasks["retrieval"].image_features(self.model, batch.encoding)
                features[[picture.place for picture in batch.pictures]] = found.cpu()
        return request, features

    def embed_texts(self, texts: Texts) -> Tensor:
        """Features float32 [T,d] of length 1."""
        tokenizer = self.model.text_encoder.tokenizer
        ids = [encode(tokenizer, tidy(text)) for text in names_of(texts, "texts", unique=False)]
        chunks = [ids[start : start + TEXTS_AT_A_TIME] for start in range(0, len(ids), TEXTS_AT_A_TIME)]
        with self._asker.predicting():
            return torch.cat([self._tasks["retrieval"].text_features(self.model, chunk).cpu() for chunk in chunks])

    def retrieve(
        self, images: ImageLike | ImagesLike | EncodedImages, texts: Texts, *, on_error: OnError = "raise"
    ) -> Retrieval:
        """Compares images with texts, to find the best of either side for each of the other."""
        check_on_error(on_error)
        asked = names_of(texts, "texts", unique=False)
        request, features = self._embed(images)
        names = tuple(source.name for source in request.sources)
        found = Retrieval(names, asked, features @ self.embed_texts(asked).T)
        report(request.failures, found, on_error, request.single)
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
