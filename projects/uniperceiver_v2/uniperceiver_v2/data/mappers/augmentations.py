"""Augmentations that Detectron2 lacks."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from ...errors import UnreadableImage

LARGEST_RESIZED = 2**26  # pixels that an image may have after resizing: 200 MB


class BoundedResize(T.Augmentation):
    """A resizing augmentation with a result of at least one pixel in height and width, and of limited size.

    Detectron2's own augmentation would turn an image of 1 x 4000 pixels into one of 0 x 1333.

    Args:
        resize: an augmentation of Detectron2, such as ``ResizeShortestEdge``.

    Raises:
        UnreadableImage: when it is applied, if the resized image would have more than ``LARGEST_RESIZED`` pixels.
    """

    def __init__(self, resize: T.Augmentation):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = self.resize.get_transform(image)
        if not isinstance(transform, T.ResizeTransform):
            return transform
        height, width = max(transform.new_h, 1), max(transform.new_w, 1)
        if height * width > LARGEST_RESIZED:
            raise UnreadableImage(
                f"of {transform.w} x {transform.h} pixels it would be resized to {width} x {height}, which is too large"
            )
        if (height, width) == (transform.new_h, transform.new_w):
            return transform
        return T.ResizeTransform(transform.h, transform.w, height, width, transform.interp)


class CenterCrop(T.Augmentation):
    """The square of ``size`` pixels in the centre of an image. The image must not be smaller."""

    def __init__(self, size: int):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        return T.CropTransform((width - self.size) // 2, (height - self.size) // 2, self.size, self.size)


class RandomResizedCrop(T.Augmentation):
    """A crop of random area and aspect ratio, resized to a square: the usual augmentation of ImageNet.

    Args:
        size: the side of the result in pixels.
        scale: the smallest and the largest share of the image's area.
        ratio: the smallest and the largest width / height. The logarithm is drawn uniformly.
    """

    def __init__(self, size: int, scale: Sequence[float], ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self._draw_crop_size(height, width)
        y0 = np.random.randint(height - crop_h + 1)
        x0 = np.random.randint(width - crop_w + 1)
        return T.TransformList(
            [T.CropTransform(x0, y0, crop_w, crop_h), T.ResizeTransform(crop_h, crop_w, self.size, self.size)]
        )

    def _draw_crop_size(self, height: int, width: int) -> tuple[int, int]:
        for _ in range(10):
            area = height * width * np.random.uniform(*self.scale)
            aspect = np.exp(np.random.uniform(*np.log(self.ratio)))
            crop_w, crop_h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < crop_w <= width and 0 < crop_h <= height:
                return crop_h, crop_w
        # No drawn crop fits into a very long image. Take the largest crop with an allowed aspect ratio.
        low, high = self.ratio
        return min(height, round(width / low)), min(width, round(height * high))
