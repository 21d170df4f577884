"""A sheet of test images, each with the caption and the detections that the model predicted."""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw, ImageFont

from ..reading import read_image

# All lengths are in pixels.
_PICTURE = 360  # largest width and height of a scene
_GAP = 24
_TEXT_HEIGHT = 112
_TITLE_HEIGHT = 52
_CAPTION_SIZE, _REFERENCE_SIZE, _LABEL_SIZE, _TITLE_SIZE = 16, 12, 12, 19
_PAPER, _FRAME, _INK, _PALE_INK, _LINE = "#ffffff", "#eceef2", "#14181f", "#6b7280", "#ffffff"

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def draw_caption_sheet(
    path: str,
    dataset_name: str,
    captions_json: str,
    detections_json: str,
    count: int = 12,
    columns: int = 4,
    score_threshold: float = 0.3,
) -> bool:
    """Draw the first scenes that have both captions and detections, each with a reference caption below.

    Detections are drawn as boxes with names. Masks would hide the colours that captions name.

    Args:
        path: the PNG file. Its folder is created if it does not exist.
        dataset_name: the registered detection dataset, for the names of its categories.
        captions_json: ``predictions.json`` of a :class:`~uniperceiver_v2.evaluation.CaptionEvaluator`.
        detections_json: ``coco_instances_results.json`` of a ``COCOEvaluator``, with the same image ids.
        count: the largest number of scenes.
        columns: the number of columns of the sheet.
        score_threshold: detections with a lower score are not drawn.

    Returns:
        whether a file was written. None is written if no scene has both captions and detections.
    """
    with open(detections_json, encoding="utf-8") as file:
        detections = defaultdict(list)
        for detection in json.load(file):
            detections[detection["image_id"]].append(detection)
    with open(captions_json, encoding="utf-8") as file:
        scenes = [scene for scene in json.load(file) if scene["image_id"] in detections][:count]
    if not scenes:
        return False

    columns = min(columns, len(scenes))
    cell_width, cell_height = _PICTURE + _GAP, _PICTURE + _TEXT_HEIGHT
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, _TITLE_HEIGHT + rows * cell_height), _PAPER)
    title = f"{dataset_name}: captions, detections with a score of {score_threshold:g} or more, a reference caption"
    ImageDraw.Draw(sheet).text((_GAP, _TITLE_HEIGHT / 2), title, _INK, _font(_TITLE_SIZE), anchor="lm")
    names = _names_by_id(dataset_name)
    for index, scene in enumerate(scenes):
        left = _GAP + index % columns * cell_width
        top = _TITLE_HEIGHT + index // columns * cell_height
        shown = [d for d in detections[scene["image_id"]] if d["score"] >= score_threshold]
        sheet.paste(_picture(read_image({"file_name": scene["file_name"]}, "RGB"), shown, names), (left, top))
        _write_captions(ImageDraw.Draw(sheet), left, top + _PICTURE + 10, scene["caption"], scene["references"][0])
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    sheet.save(path)
    return True


def _names_by_id(dataset_name: str) -> dict[int, str]:
    """The names of categories by their ids in results files."""
    DatasetCatalog.get(dataset_name)  # fills the metadata
    metadata = MetadataCatalog.get(dataset_name)
    to_index = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_index is None:  # then COCOEvaluator writes indices instead of ids
        return dict(enumerate(metadata.thing_classes))
    return {category: metadata.thing_classes[index] for category, index in to_index.items()}


def _picture(image: np.ndarray, detections: Sequence[dict], names: dict[int, str]) -> Image.Image:
    """An image [H,W,3] with its detections, centred in a square."""
    height, width = image.shape[:2]
    scale = _PICTURE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = Image.new("RGB", (_PICTURE, _PICTURE), _FRAME)
    left, top = (_PICTURE - size[0]) // 2, (_PICTURE - size[1]) // 2
    picture.paste(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), (left, top))
    draw = ImageDraw.Draw(picture)
    best_first = sorted(detections, key=lambda detection: -detection["score"])
    boxes = []
    for detection in best_first:
        x, y, w, h = (coordinate * scale for coordinate in detection["bbox"])
        boxes.append((left + x, top + y, left + x + w, top + y + h))
        _outline(draw, *boxes[-1])
    taken: list[Box] = []
    for box, detection in zip(boxes, best_first):
        text = f"{names[detection['category_id']]} {100 * detection['score']:.0f}"
        taken.append(_label(draw, text, box, taken))
    return picture


def _outline(draw: ImageDraw.ImageDraw, x0: float, y0: float, x1: float, y1: float) -> None:
    # A white line between dark ones is visible on any background.
    for inset, color in ((-2, _INK), (1, _INK), (-1, _LINE), (0, _LINE)):
        left, top = x0 + inset, y0 + inset
        draw.rectangle((left, top, max(x1 - inset, left), max(y1 - inset, top)), None, color)


def _label(draw: ImageDraw.ImageDraw, text: str, box: Box, taken: Sequence[Box]) -> Box:
    """Write a name at its box and return the area that it covers. Prefers a place that covers no other name."""
    width, height = draw.textlength(text, _font(_LABEL_SIZE)) + 8, _LABEL_SIZE + 5
    place = _place(width, height, box, (_PICTURE, _PICTURE), taken)
    draw.rectangle(place, _INK)
    draw.text((place[0] + 4, (place[1] + place[3]) / 2), text, _LINE, _font(_LABEL_SIZE), anchor="lm")
    return place


def _place(width: float, height: float, box: Box, picture: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where a name of this size stands at its box in a picture (width, height). Prefers a free place."""
    x0, y0, x1, y1 = box
    # Places by preference: above the box, below, inside at the top, inside at the bottom; each at the left, then right.
    corners = [(x, y) for y in (y0 - height - 2, y1 + 2, y0, y1 - height) for x in (x0 - 2, x1 - width + 2)]
    inside = [(min(max(x, 0), picture[0] - width), y) for x, y in corners if 0 <= y <= picture[1] - height]
    places = [(x, y, x + width, y + height) for x, y in inside] or [(0, 0, width, height)]
    free = [place for place in places if not any(_overlap(place, other) for other in taken)]
    return (free or places)[0]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write_captions(draw: ImageDraw.ImageDraw, left: int, top: int, caption: str, reference: str) -> None:
    for text, size, color, most in (
        (caption or "(no caption)", _CAPTION_SIZE, _INK, 2),
        (reference, _REFERENCE_SIZE, _PALE_INK, 2),
    ):
        for line in _wrap(draw, text, size, most):
            draw.text((left, top), line, color, _font(size))
            top += round(1.25 * size)
        top += 4


def text_block(text: str, width: int, lines: int = 2) -> np.ndarray:
    """A text on white in ``lines`` lines: uint8 [H, width, 3]. A longer text ends with an ellipsis."""
    spacing = round(1.25 * _CAPTION_SIZE)
    block = Image.new("RGB", (width, lines * spacing + 8), _PAPER)
    draw = ImageDraw.Draw(block)
    for index, line in enumerate(_wrap(draw, text, _CAPTION_SIZE, lines, width - 12)):
        draw.text((6, 4 + index * spacing), line, _INK, _font(_CAPTION_SIZE))
    return np.asarray(block)


def _wrap(draw: ImageDraw.ImageDraw, text: str, size: int, most: int, width: int = _PICTURE) -> list[str]:
    """The first ``most`` lines of a text, broken at ``width`` pixels. A longer text ends with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, _font(size)) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_fit(draw, line, size, width) for line in lines]


def _fit(draw: ImageDraw.ImageDraw, line: str, size: int, width: int) -> str:
    """A line, cut with an ellipsis if it is wider than ``width`` pixels, as a single long word may be."""
    while draw.textlength(line, _font(size)) > width:
        line = line.rstrip("…")[:-1] + "…"
    return line


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has Latin, Greek and Cyrillic letters. Pillow's own font has ASCII only."""
    from matplotlib import get_data_path  # imported here, as it takes a fifth of a second

    return ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
