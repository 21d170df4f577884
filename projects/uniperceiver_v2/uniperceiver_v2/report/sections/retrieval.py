"""Retrieval: recall by rank, and examples in both directions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from ..blocks import Block, Card, Line, Note, Picture, Plot
from ..pictures import picture
from ..plots import lines_plot
from ..run import Evaluation, Missing
from .part import Part, extremes, galleries

_FILE = "predictions.json"
_CAPTIONS = 4  # shown of the best captions of an image
_IMAGES = 5  # shown of the best images of a caption
_EXAMPLES = 4
_Ranks = list[int | None]


def retrieval(evaluation: Evaluation) -> list[Part]:
    """The parts of a dataset of retrieval."""
    ranks = functools.cache(lambda: _ranks(evaluation.json(_FILE)))
    return [
        Part("Recall by rank", lambda: _recall(evaluation, *ranks())),
        Part("Captions of images, worst and best", lambda: _of_images(evaluation, ranks()[0])),
        Part("Images of captions, worst and best", lambda: _of_captions(evaluation, ranks()[1])),
    ]


def _ranks(found: dict) -> tuple[_Ranks, _Ranks]:
    """The place, from 0, of the first right caption of each image, and of the right image of each caption. None if it
    is not among those in the file."""
    owner = {caption["id"]: caption["image_id"] for caption in found["captions"]}
    of_images = [_first([owner[c] == image["image_id"] for c in image["best_captions"]]) for image in found["images"]]
    of_captions = [_first([i == caption["image_id"] for i in caption["best_images"]]) for caption in found["captions"]]
    return of_images, of_captions


def _first(hits: Sequence[bool]) -> int | None:
    return hits.index(True) if True in hits else None


def _recall(evaluation: Evaluation, of_images: _Ranks, of_captions: _Ranks) -> list[Block]:
    found = evaluation.json(_FILE)
    if not found["images"]:
        raise Missing("no image was searched for")
    kept = max(len(image["best_captions"]) for image in found["images"]), len(found["captions"][0]["best_images"])
    lines = {}
    for name, ranks, depth in (("captions by image", of_images, kept[0]), ("images by caption", of_captions, kept[1])):
        x = list(range(1, depth + 1))
        lines[name] = (x, [100 * sum(r is not None and r < k for r in ranks) / len(ranks) for k in x])
    # Without replacement, chance is about k / n for the one right image of a caption.
    lines["images by caption, chance"] = (x, [100 * min(k / len(found["images"]), 1) for k in x])
    uri = lines_plot(lines, "among the first", "found (%)", dashed=["images by caption, chance"])
    return [Plot(uri, "Recall by rank in both directions")]


def _of_images(evaluation: Evaluation, ranks: _Ranks) -> list[Block]:
    found = evaluation.json(_FILE)
    captions = {caption["id"]: caption for caption in found["captions"]}
    items = list(zip(found["images"], ranks))
    worst, best = extremes(items, lambda item: _quality(item[0]["scores"], item[1]), _EXAMPLES)

    def card(item: tuple[dict, int | None]) -> Card:
        image, rank = item
        lines = [
            Line(
                ((captions[c]["caption"], _style(captions[c]["image_id"] == image["image_id"])), (f"  {s:.2f}", "pale"))
            )
            for c, s in list(zip(image["best_captions"], image["scores"]))[:_CAPTIONS]
        ]
        if rank is None or rank >= _CAPTIONS:
            own = next(c["caption"] for c in found["captions"] if c["image_id"] == image["image_id"])
            place = _place(rank, len(image["scores"]))
            lines.append(Line(((own, ""), (f"  {place}", "pale")), "its own"))
        alt = f"Image {image['image_id']}"
        return Card([picture(evaluation.file_name(image), alt=alt)], lines)

    return [Note("Blue captions are the image's own."), *galleries(worst, best, card)]


def _of_captions(evaluation: Evaluation, ranks: _Ranks) -> list[Block]:
    found = evaluation.json(_FILE)
    images = {image["image_id"]: image for image in found["images"]}
    items = list(zip(found["captions"], ranks))
    worst, best = extremes(items, lambda item: _quality(item[0]["scores"], item[1]), _EXAMPLES)

    def card(item: tuple[dict, int | None]) -> Card:
        caption, rank = item
        shown = caption["best_images"][:_IMAGES]
        lines = [Line.of(f"“{caption['caption']}”")]
        if caption["image_id"] not in shown:
            shown = [*shown[:-1], caption["image_id"]]
            lines.append(Line.of(f"the framed picture is {_place(rank, len(caption['scores']))}", "pale"))
        return Card([_framed(evaluation, images[i], i == caption["image_id"]) for i in shown], lines)

    note = Note("The pictures that fit a caption best, from left to right. The framed one is the caption's own.")
    return [note, *galleries(worst, best, card, "wide")]


def _place(rank: int | None, kept: int) -> str:
    return f"not among the first {kept}" if rank is None else f"at place {rank + 1}"


def _framed(evaluation: Evaluation, image: dict, is_right: bool) -> Picture:
    shown = picture(evaluation.file_name(image), alt=f"Image {image['image_id']}")
    return replace(shown, alt=f"{shown.alt}, the caption's own", is_framed=True) if is_right else shown


def _quality(scores: Sequence[float], rank: int | None) -> tuple[float, float]:
    """Grows with the place of what is right, then with the distance of the first from the second."""
    lead = scores[0] - scores[1] if len(scores) > 1 else 0.0
    return (-len(scores), -lead) if rank is None else (-rank, lead if rank == 0 else -lead)


def _style(is_right: bool) -> str:
    return "right" if is_right else ""
