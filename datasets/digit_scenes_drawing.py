"""Draws the pictures of digit_scenes: real handwritten digits on textured backgrounds, with their masks.

Every function depends on its arguments only, among them a NumPy generator. So a scene depends on its seed only, and
scenes can be drawn in any order and in any process. Shapes: H = W = ``SCENE_SIZE``; images are uint8 [H, W, 3] in RGB,
masks bool [H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from pycocotools import mask as mask_api
from sklearn.datasets import load_digits

SCENE_SIZE = 96
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Probabilities of the classes: two rare classes, three common ones and five frequent ones, so that all of LVIS's
# frequency groups occur.
CLASS_WEIGHTS = np.array([4, 9, 9, 9, 1.5, 9, 4, 9, 4, 1.5]) / 60
COLOURS_RGB = {
    "red": (226, 44, 48),
    "green": (52, 190, 70),
    "blue": (56, 116, 246),
    "yellow": (246, 224, 50),
    "purple": (176, 76, 222),
    "orange": (248, 142, 26),
    "white": (244, 244, 244),
}
Pairs = frozenset[tuple[str, str]]  # of colours and names
DIGIT_HEIGHTS = (14.0, 40.0)
CROWD_DIGIT_HEIGHTS = (9.0, 12.0)
MAX_ROTATION_DEGREES = 15.0
MAX_BOX_OVERLAP = 0.3  # as a share of the smaller box
MIN_VISIBLE_SHARE = 0.5  # as a share of a digit's ink
CROWD_SHARE = 0.05  # as a share of the scenes

_INK_THRESHOLD = 0.45  # as a share of a sample's darkest ink
_GLYPH_SCALE, _GLYPH_PADDING = 8, 2
_MIN_PART_AREA = 4.0  # square pixels
_POLYGON_UPSAMPLING = 4
_POLYGON_TOLERANCE = 0.35  # pixels


@dataclass(frozen=True)
class Instance:
    """One annotated object: a digit, or a crowd of tiny digits of one class and colour.

    ``segmentation`` is a list of polygons in absolute pixels, or an uncompressed COCO RLE for a crowd. ``box`` (x, y,
    w, h) and ``area`` are those of the mask that pycocotools makes from it.
    """

    label: int
    colour: str
    sample_ids: tuple[int, ...]
    is_crowd: bool
    segmentation: list | dict
    box: tuple[float, float, float, float]
    area: float


@dataclass(frozen=True)
class Scene:
    image: np.ndarray
    instances: tuple[Instance, ...]
    owner: np.ndarray  # int [H, W], the place of the visible instance at each pixel; -1 for the background


@dataclass
class _Placed:
    label: int
    colour: str
    sample_ids: tuple[int, ...]
    is_crowd: bool
    alpha: np.ndarray  # [H, W] float32, the share of a pixel that the ink covers
    ink: np.ndarray  # [H, W] bool
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of the ink


@cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """The UCI handwritten digits of scikit-learn: ink [1797, 8, 8] in 0..1 and labels [1797]."""
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)


@cache
def samples_by_class(samples: range) -> tuple[np.ndarray, ...]:
    """For each class, the indices of its handwriting samples among ``samples``."""
    labels = handwriting()[1][samples.start : samples.stop]
    return tuple(samples.start + np.flatnonzero(labels == label) for label in range(len(CLASS_NAMES)))


def draw_single_digit(sample_id: int, size: int = 32) -> np.ndarray:
    """A handwriting sample, enlarged cubically, white on black: uint8 [size, size, 3]."""
    ink = handwriting()[0][sample_id]
    grey = np.rint(np.clip(cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1) * 255)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def draw_scene(
    rng: np.random.Generator, samples: range, first_label: int | None = None, left_out: Pairs = frozenset()
) -> Scene:
    """Draws one scene.

    Args:
        rng: the only source of randomness.
        samples: the indices of the handwriting samples that may be used.
        first_label: the class of the first digit, to make sure that it occurs.
        left_out: pairs of colour and name that do not occur.
    """
    num_digits = int(rng.integers(1, 7))
    labels = rng.choice(len(CLASS_NAMES), size=num_digits, p=CLASS_WEIGHTS)
    if first_label is not None:
        labels[0] = first_label
    has_crowd = rng.random() < CROWD_SHARE
    placed = None
    while placed is None:  # if there is no room for the last digits, the whole layout is drawn again
        placed = _try_layout(rng, samples, labels, has_crowd, left_out)

    canvas = draw_background(rng)
    owner = np.full((SCENE_SIZE, SCENE_SIZE), -1)
    for index, item in enumerate(placed):
        colour = np.clip(np.array(COLOURS_RGB[item.colour]) + rng.uniform(-12, 12, size=3), 0, 255)
        x0, y0, x1, y1 = item.box
        # The soft edge extends about a pixel beyond the ink.
        near = np.s_[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2]
        canvas[near] += item.alpha[near][:, :, None] * (colour.astype(np.float32) - canvas[near])
        owner[item.ink] = index
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, tuple(_annotate(item, owner == index) for index, item in enumerate(placed)), owner)


def _try_layout(
    rng: np.random.Generator, samples: range, labels: np.ndarray, has_crowd: bool, left_out: Pairs
) -> list[_Placed] | None:
    placed: list[_Placed] = []
    if has_crowd:
        placed.append(_draw_crowd(rng, samples, left_out))
    max_height = DIGIT_HEIGHTS[1]
    for label in labels:
        for attempt in range(40):
            height = rng.uniform(DIGIT_HEIGHTS[0], max_height)
            digit = _draw_digit(rng, samples, int(label), height, left_out)
            if digit is not None and _fits(digit, placed):
                placed.append(digit)
                break
            if attempt % 10 == 9:  # there is little room: try smaller digits
                max_height = max(DIGIT_HEIGHTS[0] + 2, 0.8 * max_height)
        else:
            return None
    return placed


def _fits(new: _Placed, placed: list[_Placed]) -> bool:
    """Whether ``new``, drawn over ``placed``, overlaps no box too much and leaves enough of every digit's ink
    visible."""
    for other in placed:
        overlap = _intersection(new.box, other.box)
        if other.is_crowd and overlap > 0:
            return False
        if overlap > MAX_BOX_OVERLAP * min(_box_area(new.box), _box_area(other.box)):
            return False
    layers = [*placed, new]
    covered = np.zeros((SCENE_SIZE, SCENE_SIZE), bool)
    for item in reversed(layers):
        if np.count_nonzero(item.ink & ~covered) < MIN_VISIBLE_SHARE * np.count_nonzero(item.ink):
            return False
        covered |= item.ink
    return True


def _intersection(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _box_area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


@cache
def _glyph(sample_id: int) -> tuple[np.ndarray, np.ndarray]:
    """A sample's ink, padded and enlarged, in 0..1 [96, 96], and the convex hull of its strokes [P, 2]."""
    ink = np.pad(handwriting()[0][sample_id], _GLYPH_PADDING)
    ink = cv2.resize(ink / ink.max(), None, fx=_GLYPH_SCALE, fy=_GLYPH_SCALE, interpolation=cv2.INTER_CUBIC)
    rows, columns = np.nonzero(ink > _INK_THRESHOLD)
    hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
    return ink, hull[:, 0].astype(np.float64)


def _render_ink(rng: np.random.Generator, sample_id: int, height: float) -> np.ndarray:
    """The sample, slightly rotated, with strokes ``height`` pixels high: 0..1 [h, w], with a margin of a pixel."""
    glyph, hull = _glyph(sample_id)
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotated = hull @ rotation.T
    low, extent = rotated.min(axis=0), np.ptp(rotated, axis=0)
    scale = height / extent[1]
    matrix = np.concatenate([rotation * scale, (1.0 - scale * low)[:, None]], axis=1)
    width_px, height_px = (int(np.ceil(e * scale)) + 3 for e in extent)
    return cv2.warpAffine(glyph, matrix, (width_px, height_px), flags=cv2.INTER_LINEAR)


def _draw_digit(rng: np.random.Generator, samples: range, label: int, height: float, left_out: Pairs) -> _Placed | None:
    sample_id = int(rng.choice(samples_by_class(samples)[label]))
    patch = _render_ink(rng, sample_id, height)
    if max(patch.shape) > SCENE_SIZE:
        return None
    y = int(rng.integers(0, SCENE_SIZE - patch.shape[0] + 1))
    x = int(rng.integers(0, SCENE_SIZE - patch.shape[1] + 1))
    layer = np.zeros((SCENE_SIZE, SCENE_SIZE), np.float32)
    layer[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return _place(layer, label, _draw_colour(rng, label, left_out), (sample_id,))


def _draw_colour(rng: np.random.Generator, label: int, left_out: Pairs) -> str:
    while True:
        colour = list(COLOURS_RGB)[int(rng.integers(len(COLOURS_RGB)))]
        if (colour, CLASS_NAMES[label]) not in left_out:
            return colour


def _place(layer: np.ndarray, label: int, colour: str, sample_ids: tuple[int, ...]) -> _Placed:
    alpha = np.clip((layer - _INK_THRESHOLD) / 0.24 + 0.5, 0, 1)  # soft edges, half covered at the threshold
    ink = layer > _INK_THRESHOLD
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _Placed(label, colour, sample_ids, len(sample_ids) > 1, alpha, ink, box)


def _draw_crowd(rng: np.random.Generator, samples: range, left_out: Pairs) -> _Placed:
    """Four to eight tiny digits of one class and colour in two close rows."""
    label = int(rng.choice(len(CLASS_NAMES), p=CLASS_WEIGHTS))
    sample_ids = rng.choice(samples_by_class(samples)[label], size=int(rng.integers(4, 9)), replace=False)
    patches = [_render_ink(rng, int(i), rng.uniform(*CROWD_DIGIT_HEIGHTS)) for i in sample_ids]
    columns = (len(patches) + 1) // 2
    cell = max(max(p.shape) for p in patches)
    top = int(rng.integers(0, SCENE_SIZE - 2 * cell + 1))
    left = int(rng.integers(0, SCENE_SIZE - columns * cell + 1))
    layer = np.zeros((SCENE_SIZE, SCENE_SIZE), np.float32)
    for index, patch in enumerate(patches):
        height, width = patch.shape
        y = top + index // columns * cell + int(rng.integers(0, cell - height + 1))
        x = left + index % columns * cell + int(rng.integers(0, cell - width + 1))
        layer[y : y + height, x : x + width] = patch
    return _place(layer, label, _draw_colour(rng, label, left_out), tuple(int(i) for i in sample_ids))


def _muted_colour(rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(10, 110), rng.uniform(28, 112)
    pixel = np.array([[[hue, saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def draw_background(rng: np.random.Generator) -> np.ndarray:
    """A blend of two muted colours by a texture, with thin distractor strokes: float32 [H, W, 3]."""
    yy, xx = np.mgrid[0:SCENE_SIZE, 0:SCENE_SIZE].astype(np.float32) / SCENE_SIZE
    angle = rng.uniform(0, 2 * np.pi)
    along = xx * np.cos(angle) + yy * np.sin(angle)
    kind = rng.choice(["noise", "gradient", "stripes"])
    if kind == "noise":
        cells = int(rng.integers(4, 13))
        texture = _smooth_noise(rng, cells)
    elif kind == "gradient":
        texture = 0.75 * (along - along.min()) / np.ptp(along) + 0.25 * _smooth_noise(rng, 16)
    else:
        frequency = rng.uniform(4, 11)
        waves = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + rng.uniform(0, 2 * np.pi))
        texture = 0.7 * waves + 0.3 * _smooth_noise(rng, 10)
    first, second = _muted_colour(rng), _muted_colour(rng)
    canvas = first + texture[:, :, None].astype(np.float32) * (second - first)
    canvas += rng.normal(0, 2.5, size=(SCENE_SIZE, SCENE_SIZE, 1)).astype(np.float32)
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(2, 7))):
        _draw_stroke(rng, canvas)
    return canvas.astype(np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    coarse = rng.random((cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (SCENE_SIZE, SCENE_SIZE), interpolation=cv2.INTER_CUBIC), 0, 1)


def _draw_stroke(rng: np.random.Generator, canvas: np.ndarray) -> None:
    colour = tuple(float(c) for c in rng.uniform(40, 215, size=3))
    x0, y0, x1, y1 = (int(v) for v in rng.integers(0, SCENE_SIZE, size=4))
    if rng.random() < 0.5:
        cv2.line(canvas, (x0, y0), (x1, y1), colour, 1, cv2.LINE_AA)
    else:
        axes = tuple(int(v) for v in rng.integers(4, 22, size=2))
        start = rng.uniform(0, 360)
        end = start + rng.uniform(60, 300)
        cv2.ellipse(canvas, (x0, y0), axes, rng.uniform(0, 180), start, end, colour, 1, cv2.LINE_AA)


def _annotate(item: _Placed, visible: np.ndarray) -> Instance:
    if item.is_crowd:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))
        region = cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        segmentation = uncompressed_rle(region)
        rle = mask_api.frPyObjects(segmentation, SCENE_SIZE, SCENE_SIZE)
    else:
        segmentation = mask_to_polygons(visible)
        rle = mask_api.merge(mask_api.frPyObjects(segmentation, SCENE_SIZE, SCENE_SIZE))
    box = tuple(float(v) for v in mask_api.toBbox(rle))
    area = float(mask_api.area(rle))
    return Instance(item.label, item.colour, item.sample_ids, item.is_crowd, segmentation, box, area)


def uncompressed_rle(mask: np.ndarray) -> dict:
    """COCO's run lengths of a mask [H, W]. Runs follow the columns and begin with zeros."""
    flat = np.concatenate([[0], mask.astype(np.int8).ravel(order="F"), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = [0, *changes.tolist(), mask.size]
    counts = np.diff(ends).tolist()
    if counts[-1] == 0:
        counts.pop()
    return {"size": list(mask.shape), "counts": counts}


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outer contours of a mask [H, W] as COCO polygons, without parts smaller than ``_MIN_PART_AREA``.

    OpenCV traces the centres of pixels, which loses half a pixel at every side and so much of a thin stroke. Contours
    are therefore traced on an enlarged mask, where they follow the outer edges of the original pixels.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    enlarged = cv2.resize(
        mask[y : y + height, x : x + width].astype(np.uint8),
        (width * _POLYGON_UPSAMPLING, height * _POLYGON_UPSAMPLING),
        interpolation=cv2.INTER_NEAREST,
    )
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons, areas = [], []
    for contour in contours:
        contour = cv2.approxPolyDP(contour, _POLYGON_TOLERANCE * _POLYGON_UPSAMPLING, closed=True)
        points = (contour[:, 0].astype(np.float64) + 0.5) / _POLYGON_UPSAMPLING + (x, y)
        if len(points) >= 3:
            polygons.append(np.round(points, 2).ravel().tolist())
            areas.append(cv2.contourArea(points.astype(np.float32)))
    largest = max(areas)
    return [p for p, a in zip(polygons, areas, strict=True) if a >= min(_MIN_PART_AREA, largest)]
