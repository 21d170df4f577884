"""An exported model in onnxruntime, for checks and measurements. ``examples/ask_onnx.py`` is the program for people."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..modeling.image_encoder import Proposals
from ..modeling.image_encoder.boxes import xyxy_to_cxcywh
from ..predictor import Predictor
from ..tasks import ImageSizes, LabelledProposals
from ..tasks.generation import Step
from ..tasks.labelled_proposals import best_pairs
from .description import DESCRIPTION, FORMAT
from .files import require

Arrays = dict[str, np.ndarray]


class Exported:
    """The files of a directory in one precision. A session is opened when its part is first called.

    Args:
        directory: as :func:`~uniperceiver_v2.export.export` wrote it.
        precision: "fp32", "fp16" or "int8".
        threads: of onnxruntime; 0 lets it choose.

    Raises:
        UserError: it is no such directory, or has no files of this precision.
    """

    def __init__(self, directory: Path, precision: str = "fp32", threads: int = 0):
        try:
            self.description: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{directory} is no exported model: {error}") from error
        if self.description.get("format") != FORMAT or precision not in self.description["precisions"]:
            raise UserError(f"{directory} has no files of the precision {precision}")
        self._directory, self._precision, self._threads = directory, precision, threads
        self._sessions: dict[str, Any] = {}

    def __call__(self, part: str, *inputs: Tensor | np.ndarray) -> Arrays:
        """The outputs of a part by their names. Inputs come in the part's order."""
        described = self.description["parts"][part]
        arrays = {name: np.asarray(value) for name, value in zip(described["inputs"], inputs, strict=True)}
        return dict(zip(described["outputs"], self.session(part).run(None, arrays), strict=True))

    def session(self, part: str) -> Any:
        """The InferenceSession of a part."""
        if part not in self._sessions:
            runtime = require("onnxruntime")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            file = self._directory / self.description["parts"][part]["files"][self._precision]
            self._sessions[part] = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return self._sessions[part]


class Detector:
    """Detectron2's detecting model, computed by the files: a list of inputs to a list of {"instances"}.

    Args:
        exported: the files.
        predictor: the model that was exported. Only its tokenizer and its settings are used.
    """

    def __init__(self, exported: Exported, predictor: Predictor):
        self._exported, self._task = exported, predictor.task("detection")
        self._encoder = predictor.model.text_encoder
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": found} for items in of_one_size(inputs) for found in self._detect(items)]

    def candidates(self, texts: tuple[str, ...]) -> Tensor:
        """Features [C,d] of texts, kept."""
        if texts not in self._texts:
            self._texts[texts] = torch.from_numpy(
                self._exported("text", *self._encoder.tokenize(texts))["text_features"]
            )
        return self._texts[texts]

    def _detect(self, items: list[dict[str, Any]]) -> Iterator[Any]:
        images = torch.stack([item["image"] for item in items])
        found = {name: torch.from_numpy(x) for name, x in self._exported("image", images).items()}
        about = self._exported.description
        candidates = self.candidates(self._task.candidates_of(items))
        cosines = found["proposal_features"] @ candidates.T
        scores = found["objectness"].unsqueeze(-1) * (cosines / about["temperatures"]["detection"]).softmax(-1)
        height, width = images.shape[-2:]
        proposals = Proposals(
            semantics=found["proposal_features"],
            boxes=xyxy_to_cxcywh(found["boxes"] / torch.tensor([width, height, width, height])),
            masks=found["masks"],
            objectness=found["objectness"],
            appearance=found["proposal_features"],
            masks_in_boxes=about["detection"]["masks_end_at_boxes"],
            boxes_around_masks=about["detection"]["boxes_around_masks"],
            masks_are_learned=about["detection"]["masks"],
        )
        multiple = about["preprocessing"]["padded_to_multiples_of"]
        padded = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        count, temperature = about["detection"]["per_image"], about["detection"]["score_temperature"]
        sizes = ImageSizes([(height, width)] * len(items), padded)
        for place, (item, of_image) in enumerate(zip(items, scores)):
            pairs: LabelledProposals = best_pairs(of_image, proposals, place, sizes, count, temperature)
            yield pairs.instances((item.get("height", height), item.get("width", width)))


class Captioner:
    """A model that captions, computed by the files: a list of inputs to a list of {"caption", "log_likelihood"}.

    Args:
        exported: the files.
        predictor: the model that was exported. Only its tokenizer and its settings are used.
    """

    def __init__(self, exported: Exported, predictor: Predictor):
        self._exported, self._task = exported, predictor.task("captioning")
        self._encoder = predictor.model.text_encoder

    def __call__(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        captions = [caption for items in of_one_size(inputs) for caption in self._caption(items)]
        return [{"caption": text, "log_likelihood": log_likelihood} for text, log_likelihood in captions]

    def _caption(self, items: list[dict[str, Any]]) -> list[tuple[str, float]]:
        step = next_words(self._exported, self._exported("image", torch.stack([item["image"] for item in items])))
        start = torch.full((len(items),), self._encoder.bos_id)
        return self._task.search(self._encoder, step, start, self._task.settings.beam_size)


def of_one_size(inputs: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Neighbours whose images can be a batch."""
    return (list(items) for _, items in itertools.groupby(inputs, lambda item: item["image"].shape))


def next_words(exported: Exported, seen: Arrays) -> Step:
    """:func:`~uniperceiver_v2.tasks.captioning.next_words`, computed by the files.

    Args:
        seen: outputs of the part "image".
    """
    parts = exported.description["parts"]
    begun = exported("caption_begin", *(seen[name] for name in parts["caption_begin"]["inputs"]))
    image, valid = begun["image_past"], begun["image_valid"]
    empty, shapes = {"captions": len(valid), "words": 0}, parts["caption_step"]["inputs"]
    texts, words = (
        np.zeros([empty.get(x, x) for x in shapes[name]], np.float32) for name in ("text_past", "word_past")
    )

    def step(tokens: Tensor, rows: Tensor) -> Tensor:
        nonlocal image, valid, texts, words
        chosen = rows.numpy()
        image, valid, texts, words = image[:, :, chosen], valid[chosen], texts[:, :, chosen], words[:, :, chosen]
        found = exported("caption_step", tokens, image, valid, texts, words)
        texts, words = found["new_text_past"], found["new_word_past"]
        return torch.from_numpy(found["log_probabilities"])

    return step
