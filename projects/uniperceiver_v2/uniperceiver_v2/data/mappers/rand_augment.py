"""RandAugment and random erasing, for images with one class.

They move or hide what an image shows, so neither suits images with boxes or captions.
"""

from collections.abc import Callable

import numpy as np
from detectron2.data import transforms as T
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)  # of what an operation leaves empty
_ERASED_SHARE, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
_ATTEMPTS = 10

# From an image and a strength in -1..1, whose sign is random where an operation has two directions.
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, by: image,
    "autocontrast": lambda image, by: ImageOps.autocontrast(image),
    "equalize": lambda image, by: ImageOps.equalize(image),
    "posterize": lambda image, by: ImageOps.posterize(image, 8 - round(4 * abs(by))),
    "solarize": lambda image, by: ImageOps.solarize(image, round(256 * (1 - abs(by)))),
    "colour": lambda image, by: ImageEnhance.Color(image).enhance(1 + 0.9 * by),
    "contrast": lambda image, by: ImageEnhance.Contrast(image).enhance(1 + 0.9 * by),
    "brightness": lambda image, by: ImageEnhance.Brightness(image).enhance(1 + 0.9 * by),
    "sharpness": lambda image, by: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * by),
    "rotate": lambda image, by: image.rotate(30 * by, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "shear_x": lambda image, by: _affine(image, 1, 0.3 * by, 0, 0, 1, 0),
    "shear_y": lambda image, by: _affine(image, 1, 0, 0, 0.3 * by, 1, 0),
    "translate_x": lambda image, by: _affine(image, 1, 0, 0.45 * by * image.width, 0, 1, 0),
    "translate_y": lambda image, by: _affine(image, 1, 0, 0, 0, 1, 0.45 * by * image.height),
}
"""The 14 operations of RandAugment, table 6 of the paper, with its largest strengths."""


class _OfPixels(T.Transform):
    """A function of an image uint8 [H, W, 3] that keeps its size. Coordinates have no meaning after it."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self._function = function

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._function(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("this augmentation is for images without boxes")


class RandAugment(T.Augmentation):
    """Operations drawn from :data:`OPERATIONS`, all with one strength (Cubuk et al., NeurIPS 2020).

    Args:
        count: the number of operations that are applied to an image, one after the other.
        magnitude: their strength, 0 to 10.
    """

    def __init__(self, count: int, magnitude: float):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        names = np.random.choice(list(OPERATIONS), self.count)
        strengths = self.magnitude / 10 * np.random.choice([-1, 1], self.count)

        def apply(pixels: np.ndarray) -> np.ndarray:
            picture = Image.fromarray(pixels)
            for name, by in zip(names, strengths):
                picture = OPERATIONS[name](picture, float(by))
            return np.array(picture)

        return _OfPixels(apply)


class RandomErasing(T.Augmentation):
    """Replaces a rectangle by noise (Zhong et al., AAAI 2020).

    Its share of the image is between 2% and a third, its width / height between 0.3 and 3.3.

    Args:
        probability: of an image to lose a rectangle.
    """

    def __init__(self, probability: float):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        box = self._draw_box(*image.shape[:2]) if np.random.uniform() < self.probability else None
        if box is None:
            return T.NoOpTransform()
        y0, x0, height, width = box
        noise = np.random.randint(0, 256, (height, width, 3)).astype(np.uint8)

        def apply(pixels: np.ndarray) -> np.ndarray:
            erased = pixels.copy()
            erased[y0 : y0 + height, x0 : x0 + width] = noise
            return erased

        return _OfPixels(apply)

    @staticmethod
    def _draw_box(height: int, width: int) -> tuple[int, int, int, int] | None:
        """(y0, x0, height, width). None if no drawn rectangle fits into the image."""
        for _ in range(_ATTEMPTS):
            area = height * width * np.random.uniform(*_ERASED_SHARE)
            aspect = np.exp(np.random.uniform(*np.log(_ERASED_RATIO)))
            h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                return np.random.randint(height - h + 1), np.random.randint(width - w + 1), h, w
        return None
