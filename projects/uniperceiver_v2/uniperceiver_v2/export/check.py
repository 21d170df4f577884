"""Exported files beside the model that they come from: the largest differences, and what they are worth."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.evaluation import inference_on_dataset
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..data import build_test_loader
from ..errors import UserError
from ..evaluation import build_evaluator
from ..kinds import evaluated_kind
from ..modeling.decoder import IMAGE_TO_TEXT
from ..modeling.image_encoder import ImageEncoding
from ..modeling.image_encoder.boxes import cxcywh_to_xyxy
from ..modeling.likelihood import directions
from ..modeling.model import UniPerceiver
from ..predictor import Predictor
from ..tasks import captioning
from .session import Arrays, Captioner, Detector, Exported, next_words

TOLERANCE = 1e-3  # boxes in pixels, everything else in its own unit
ROUNDING = 3  # times what PyTorch's own kernels differ by is no mistake of the files
WORDS = 4  # of each caption
PER_PROPOSAL = ("boxes", "objectness", "masks", "proposal_features")
# {kind of test set: (what computes it by the files, {figure: (row of its results, metric)})}
FIGURES = {
    "detection": (Detector, {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP")}),
    "captioning": (Captioner, {"CIDEr": ("caption", "CIDEr"), "wholly true": ("caption_truth", "true")}),
}

Differences = dict[str, float]


def random_images(random: np.random.Generator, smallest: int, largest: int) -> Tensor:
    """One to four smooth pictures of one random size, uint8 [B,3,H,W]."""
    batch = int(random.integers(1, 5))
    height, width = (int(x) for x in random.integers(smallest, largest + 1, 2))
    coarse = torch.from_numpy(random.random((batch, 3, int(random.integers(3, 9)), int(random.integers(3, 9)))))
    smooth = F.interpolate(coarse.float(), (height, width), mode="bilinear", align_corners=False)
    return (smooth * 255).round().to(torch.uint8)


def random_texts(random: np.random.Generator, vocabulary: int) -> list[Tensor]:
    """Two to six texts of random ids, of different lengths."""
    lengths = random.integers(1, 9, int(random.integers(2, 7)))
    return [torch.from_numpy(random.integers(3, vocabulary, int(length))) for length in lengths]


@torch.no_grad()
def differences(
    model: UniPerceiver, exported: Exported, trials: int, seed: int = 0, smallest: int = 64, largest: int = 320
) -> Differences:
    """The largest absolute difference of each output over random sizes, batches and texts, {part.output: number}.

    The model computes as it does in evaluation, with its experts and its own kernels.

    Args:
        model: on the CPU, in evaluation mode.
        exported: its files.
        trials: the number of batches.
        seed: of the random pictures and texts.
        smallest, largest: sides of images in pixels. Below 64, an image may have fewer tokens than queries. Then tokens
            of the padding become queries, all with the same score, and their order is that of the library.
    """
    worst: Differences = {}
    random = np.random.default_rng(seed)
    for _ in range(trials):
        images = random_images(random, smallest, largest)
        texts = random_texts(random, model.text_encoder.vocab_size)
        for name, theirs, ours in _compared(model, exported, images, texts, random):
            assert theirs.shape == ours.shape, f"{name}: {theirs.shape}, {ours.shape}"
            known = theirs != ours  # infinities have no difference
            worst[name] = max(worst.get(name, 0.0), float(np.abs(theirs[known] - ours[known]).max(initial=0.0)))
    return worst


@torch.no_grad()
def own_rounding(
    model: UniPerceiver, trials: int, seed: int = 0, smallest: int = 64, largest: int = 320
) -> Differences:
    """What the model differs from itself by, if it computes without oneDNN, whose kernels add in another order.

    Args:
        model, trials, seed, smallest, largest: as for :func:`differences`.

    Returns:
        {output of the image part: the largest absolute difference}. All are 0 where PyTorch has no oneDNN.
    """
    worst: Differences = {}
    random = np.random.default_rng(seed)
    for _ in range(trials):
        images = random_images(random, smallest, largest)
        told = _told_of(model, images)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the context sets a flag of other devices, too
            with torch.backends.mkldnn.flags(enabled=False):
                other = {name: value.numpy() for name, value in _told_of(model, images)[1].items()}
        for name, theirs, ours in _named("image", _aligned(other, told), told):
            worst[name] = max(worst.get(name, 0.0), float(np.abs(theirs - ours).max(initial=0.0)))
    return worst


def unexplained(found: Differences, model: UniPerceiver, trials: int) -> Differences:
    """The differences above ``TOLERANCE``, NaN among them, that the model's own rounding does not explain.

    Args:
        found: of :func:`differences`.
        model, trials: as there. The rounding is measured only if something is above ``TOLERANCE``.
    """
    large = {name: value for name, value in found.items() if not value <= TOLERANCE}
    own = own_rounding(model, trials) if large else {}
    return {name: value for name, value in large.items() if not value <= ROUNDING * own.get(name, 0.0)}


def _compared(
    model: UniPerceiver, exported: Exported, images: Tensor, texts: list[Tensor], random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, the files' output, the model's) of one batch."""
    seen = exported("image", images)
    encoding, told = _told_of(model, images)
    yield from _named("image", _aligned(_as_told(seen), told), told)
    token_ids, valid = model.text_encoder.pad(texts)
    told = {"text_features": directions(model.encode_texts(token_ids, valid, IMAGE_TO_TEXT))}
    yield from _named("text", exported("text", token_ids, valid), told)
    steps = captioning.next_words(model, encoding)
    for log_probabilities, tokens, rows in _steps(model, exported, seen, random):
        yield "caption_step.log_probabilities", log_probabilities.numpy(), steps(tokens, rows).numpy()


def _named(part: str, found: Arrays, told: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    return ((f"{part}.{name}", found[name].astype(np.float64), value.numpy()) for name, value in told.items())


def _told_of(model: UniPerceiver, images: Tensor) -> tuple[ImageEncoding, dict[str, Tensor]]:
    """The model's encoding of images [B,3,H,W], and its outputs, masks as probabilities."""
    encoding, _ = model.image_encoder(model.preprocess([{"image": image} for image in images]))
    proposals, (height, width) = encoding.proposals, images.shape[-2:]
    return encoding, {
        "boxes": cxcywh_to_xyxy(proposals.boxes) * torch.tensor([width, height, width, height]),
        "objectness": proposals.objectness.sigmoid(),
        "masks": proposals.masks.sigmoid(),
        "proposal_features": directions(model.decode_proposals(encoding)),
        "image_features": directions(model.decode_image(encoding)),
    }


def _as_told(seen: Arrays) -> Arrays:
    """The image part's outputs with masks as probabilities."""
    with np.errstate(over="ignore"):
        return {**seen, "masks": 1 / (1 + np.exp(-seen["masks"]))}


def _aligned(seen: Arrays, told: dict[str, Tensor]) -> Arrays:
    """The image part's outputs with proposals in the model's order.

    Proposals stand in the order in which their tokens were selected. It means nothing, and tokens whose scores agree to
    six digits may change places.
    """
    aligned = {name: seen[name].copy() for name in told}
    for place, boxes in enumerate(told["boxes"].numpy()):
        apart = np.abs(seen["boxes"][place][:, None] - boxes).max(-1)
        apart += np.abs(seen["objectness"][place][:, None] - told["objectness"][place].numpy())
        ours, theirs = linear_sum_assignment(apart)
        order = ours[np.argsort(theirs)]
        for name in PER_PROPOSAL:
            aligned[name][place] = aligned[name][place][order]
    return aligned


def _steps(
    model: UniPerceiver, exported: Exported, seen: Arrays, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Captions of random words, two for each image from the second word on: (log P, words, rows of the step before)."""
    step, count = next_words(exported, seen), len(seen["boxes"])
    rows, tokens = torch.arange(count), torch.full((count,), model.text_encoder.bos_id)
    for _ in range(WORDS):
        yield step(tokens, rows), tokens, rows
        rows = torch.from_numpy(np.sort(random.integers(0, len(rows), 2 * count)))
        tokens = torch.from_numpy(random.integers(3, model.text_encoder.vocab_size, len(rows)))


def figures(predictor: Predictor, directory: Path, dataset: str) -> dict[str, dict[str, float]]:
    """What is said of the model and of each precision on a test set of detection or captioning.

    Returns:
        {"pytorch" or a precision: {figure: percent}}. The figures of detection are "box AP" and "mask AP", those of
        captioning "CIDEr" and, where the facts are known, "wholly true".

    Raises:
        UserError: the dataset is not known, or is one of another kind.
    """
    kind = evaluated_kind(dataset).name
    if kind not in FIGURES:
        raise UserError(f"the files are evaluated on {' and '.join(FIGURES)}, but {dataset} is a test set of {kind}")
    computed, names = FIGURES[kind]
    models: dict[str, Any] = {"pytorch": predictor.model}
    for precision in Exported(directory).description["precisions"]:
        models[precision] = computed(Exported(directory, precision), predictor)
    found = {}
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            evaluator = build_evaluator(predictor.cfg, dataset, folder)
            results = inference_on_dataset(model, build_test_loader(predictor.cfg, dataset), evaluator)
        found[name] = {told: float(results[row][key]) for told, (row, key) in names.items() if row in results}
    return found
