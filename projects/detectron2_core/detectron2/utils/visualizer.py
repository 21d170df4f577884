"""Pictures of annotations and predictions."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from torch import Tensor

from ._canvas import Color, VisImage, to_rgb
from ._generic_mask import GenericMask
from .colormap import random_color

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_SMALL_AREA = 1000  # a smaller object, in square pixels, has its label beside it
_LOW_HEIGHT = 40
_LARGE_AREA = 120000  # a larger part of a mask has its own label


@unique
class ColorMode(Enum):
    """How the colours of instances are chosen.

    ``IMAGE``: a random colour for each instance, half transparent. ``SEGMENTATION``: the category's colour
    (``metadata.thing_colors``), nearly opaque. ``IMAGE_BW``: as IMAGE, with a grey image outside of masks.
    """

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[bool] | None = None,
) -> list[str] | None:
    """ "name 87%|crowd", without the parts that are unknown. None if all are unknown."""
    parts = []
    if classes is not None:
        parts.append([class_names[index] if class_names else str(index) for index in classes])
    if scores is not None:
        parts.append([f"{score * 100:.0f}%" for score in scores])
    if not parts:
        return None
    labels = [" ".join(words) for words in zip(*parts)]
    if is_crowd is not None:
        labels = [label + ("|crowd" if crowd else "") for label, crowd in zip(labels, is_crowd)]
    return labels


class Visualizer:
    """Draws predictions, annotations or single shapes on an image.

    Every method returns the picture, a ``VisImage``. Colours are names or triples in 0..1. Source:
    ``detectron2.utils.visualizer.Visualizer``, without keypoints, rotated boxes, semantic and panoptic segmentation.
    """

    def __init__(
        self,
        img_rgb: np.ndarray | Tensor,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """
        Args:
            img_rgb: RGB [H,W,3] in 0..255.
            metadata: the dataset's metadata. Its ``thing_classes`` and ``thing_colors`` (0..255) are used if they are
                set.
            scale: output pixels per image pixel.
            instance_mode: how the colours of instances are chosen.
            font_size_scale: a factor on the size of all text.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        size = np.sqrt(self.output.height * self.output.width)
        # In points. Smaller text would not be legible.
        self._default_font_size = max(size // 90, 10 // scale) * font_size_scale
        self._instance_mode = instance_mode

    def get_output(self) -> VisImage:
        """The picture so far."""
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draws a model's predictions.

        Args:
            predictions: on the CPU, with any of the fields pred_boxes, scores, pred_classes, pred_masks.
            jittering: in the mode SEGMENTATION, whether the colours of instances of a category vary slightly.
        """
        boxes, scores, masks, classes = (
            predictions.get(name) if predictions.has(name) else None
            for name in ("pred_boxes", "scores", "pred_masks", "pred_classes")
        )
        classes = classes.tolist() if classes is not None else None
        masks = self._convert_masks(masks) if masks is not None else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes", None))
        alpha, colors = 0.5, None
        if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors", None):
            alpha, colors = 0.8, self._category_colors(classes, jittering)
        elif self._instance_mode == ColorMode.IMAGE_BW:
            alpha = 0.3
            self.output.reset_image(self._grey_outside(masks or []))
        return self.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors, alpha=alpha)

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draws the "annotations" of an image in Detectron2's dataset format."""
        annotations = dic.get("annotations")
        if not annotations:
            return self.output
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
        masks = [x["segmentation"] for x in annotations] if "segmentation" in annotations[0] else None
        classes = [x["category_id"] for x in annotations]
        crowds = [x.get("iscrowd", 0) for x in annotations]
        labels = _create_text_labels(classes, None, self.metadata.get("thing_classes", None), crowds)
        colors = None
        if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors", None):
            colors = self._category_colors(classes, jittering=True)
        return self.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors)

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | Sequence | None = None,
        labels: Sequence[str] | None = None,
        masks: PolygonMasks | BitMasks | Tensor | Sequence | None = None,
        keypoints: None = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draws instances, with large ones first, so that small ones stay visible.

        Args:
            boxes: N boxes (x0, y0, x1, y1).
            labels: N texts. A text is written at the box, or without boxes in the middle of the mask.
            masks: N masks: ``PolygonMasks``, ``BitMasks``, or a bitmap, polygons or COCO run lengths for each instance.
            keypoints: must be None. Scripts written for upstream pass it for images without keypoints.
            assigned_colors: N colours; by default random ones.
            alpha: opacity of masks.

        Raises:
            AssertionError: the numbers of boxes, masks and labels differ.
            NotImplementedError: there are keypoints.
        """
        if keypoints is not None:
            raise NotImplementedError("detectron2-core does not draw keypoints")
        if boxes is not None:
            boxes = boxes.tensor.detach().numpy() if isinstance(boxes, Boxes) else np.asarray(boxes)
            boxes = boxes.reshape(-1, 4)
        if masks is not None:
            masks = self._convert_masks(masks)
        lengths = {len(given) for given in (boxes, masks, labels) if given is not None}
        assert len(lengths) <= 1, f"boxes, masks and labels of different numbers: {sorted(lengths)}"
        count = lengths.pop() if boxes is not None or masks is not None else 0
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(count)]

        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        else:
            areas = np.array([mask.area() for mask in masks or []], dtype=np.float64)
        for i in np.argsort(-areas, kind="stable"):
            box = boxes[i] if boxes is not None else None
            mask = masks[i] if masks is not None else None
            if box is not None:
                self.draw_box(box, edge_color=assigned_colors[i])
            if mask is not None:
                self._draw_mask(mask, assigned_colors[i], None, alpha)
            if labels is not None:
                self._draw_instance_label(labels[i], box, mask, assigned_colors[i])
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Writes text on a dark background, above all shapes.

        Args:
            position: (x, y) of the left end, the middle or the right end of the text's upper border, by the alignment.
            font_size: in points, before scaling. The default depends on the size of the image.
            color: the colour of the text. Dark colours are lightened.
            horizontal_alignment: "left", "center" or "right".
            rotation: degrees counter-clockwise.
        """
        rgb = np.maximum(to_rgb(color), 0.2)
        rgb[rgb.argmax()] = max(0.8, rgb.max())
        size = (font_size or self._default_font_size) * self.output.scale
        self.output._draw_label(text, *position, rgb, size, horizontal_alignment, rotation)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draws the border of a box.

        Args:
            box_coord: (x0, y0, x1, y1).
            alpha: opacity.
            line_style: "-", "--", "-." or ":".
        """
        x0, y0, x1, y1 = (float(coordinate) for coordinate in box_coord)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        width = max(self._default_font_size / 4, 1) * self.output.scale
        self.output._draw_outline(corners, edge_color, alpha, width, line_style)
        return self.output

    def draw_polygon(
        self, segment: np.ndarray, color: Color, edge_color: Color | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Fills and outlines a polygon.

        Args:
            segment: corners [K,2].
            edge_color: the default is the colour of the inside, or a darker one if the inside is nearly opaque.
            alpha: opacity of the inside.
        """
        segment = np.asarray(segment, dtype=np.float64)
        self.output._fill_polygon(segment, color, alpha)
        self.output._draw_outline(segment, self._edge_color(color, edge_color, alpha), 1.0, self._edge_width())
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """Fills and outlines a mask. Its holes are not filled.

        Args:
            binary_mask: [H,W] of 0 and 1.
            color: the default is random.
            edge_color: as in ``draw_polygon``.
            text: written on the largest part and on other very large parts.
            alpha: opacity.
            area_threshold: connected parts with fewer pixels are not drawn.
        """
        color = to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(binary_mask.astype(np.uint8), connectivity=8)
        drawn = stats[:, cv2.CC_STAT_AREA] >= (area_threshold or 0)
        drawn[0] = False  # the background
        if not drawn.any():
            return self.output
        mask = GenericMask(drawn[parts], self.output.height, self.output.width)
        self._draw_mask(mask, color, edge_color, alpha)
        if text is not None:
            self._draw_text_in_parts(parts, stats, text, self._brighter(color, 0.7))
        return self.output

    def _draw_mask(self, mask: GenericMask, color: Color, edge_color: Color | None, alpha: float) -> None:
        if mask._from_polygons:
            for polygon in mask.polygons:
                self.draw_polygon(polygon.reshape(-1, 2), color, edge_color, alpha)
        else:
            edge_color = self._edge_color(color, edge_color, alpha)
            self.output._fill_mask(mask.mask, color, edge_color, alpha, self._edge_width())

    def _draw_instance_label(self, text: str, box: np.ndarray | None, mask: GenericMask | None, color: Color) -> None:
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
        elif mask is not None and mask.polygons:
            x0, y0, x1, y1 = mask.bbox()
            # The median is robust against distant parts.
            position, alignment = np.median(mask.mask.nonzero(), axis=1)[::-1], "center"
        else:
            return
        scale = self.output.scale
        if (y1 - y0) * (x1 - x0) < _SMALL_AREA * scale or y1 - y0 < _LOW_HEIGHT * scale:
            # Text would cover a small object. It is written below it, or at its right near the image's lower border.
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        relative_height = (y1 - y0) / np.sqrt(self.output.height * self.output.width)
        size = np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size
        self.draw_text(text, position, color=self._brighter(color, 0.7), horizontal_alignment=alignment, font_size=size)

    def _draw_text_in_parts(self, parts: np.ndarray, stats: np.ndarray, text: str, color: Color) -> None:
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0
        for part in np.nonzero((areas > _LARGE_AREA) | (np.arange(len(areas)) == areas.argmax()))[0]:
            position = np.median((parts == part).nonzero(), axis=1)[::-1]
            self.draw_text(text, position, color=color)

    def _grey_outside(self, masks: list[GenericMask]) -> np.ndarray:
        inside = np.zeros(self.img.shape[:2], dtype=bool)
        for mask in masks:
            inside |= mask.mask.astype(bool)
        grey = self.img.mean(axis=2, keepdims=True).repeat(3, axis=2)
        return np.where(inside[..., None], self.img, grey)

    def _category_colors(self, classes: Sequence[int], jittering: bool) -> list[np.ndarray]:
        colors = [np.array(self.metadata.thing_colors[index]) / 255 for index in classes]
        if jittering:
            colors = [np.clip(color + np.random.uniform(-0.2, 0.2, 3), 0, 1) for color in colors]
        return colors

    def _edge_color(self, color: Color, edge_color: Color | None, alpha: float) -> Color:
        if edge_color is not None:
            return edge_color
        return self._brighter(color, -0.7) if alpha > 0.8 else color

    def _edge_width(self) -> float:
        return max(self._default_font_size // 15 * self.output.scale, 1)

    @staticmethod
    def _brighter(color: Color, by: float) -> tuple[float, float, float]:
        """The colour with its lightness multiplied by 1 + ``by``. A negative value makes it darker."""
        hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(color))
        return colorsys.hls_to_rgb(hue, min(max(lightness * (1 + by), 0), 1), saturation)

    def _convert_masks(self, masks: PolygonMasks | BitMasks | Tensor | Sequence) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor.numpy()
        elif isinstance(masks, Tensor):
            masks = masks.numpy()
        size = (self.output.height, self.output.width)
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]
