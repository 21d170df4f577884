"""The augmentations. All draw from NumPy's global generator, in the same order as upstream."""

import sys

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .transform import ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


class RandomApply(Augmentation):
    """Apply a transform or an augmentation with probability ``prob``. Otherwise do nothing."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5):
        self.aug = _transform_to_aug(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"Probability must be between 0.0 and 1.0 (given: {prob})"
        self.prob = prob

    def get_transform(self, *args):
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input):
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip with probability ``prob``, either horizontally or vertically.

    Raises:
        ValueError: both or none of ``horizontal`` and ``vertical`` are true.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal and vertical:
            raise ValueError("Cannot do both horiz and vert. Please use two Flip instead.")
        if not horizontal and not vertical:
            raise ValueError("At least one of horiz or vert has to be True!")
        self._init(locals())

    def get_transform(self, image):
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to ``shape``: (height, width), or one number for both."""

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR):
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image):
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize the shorter edge to a drawn length, keeping the aspect ratio.

    Args:
        short_edge_length: (smallest, largest) for the style "range", all lengths for "choice", or one length. With a
            drawn length of 0 the image is not resized.
        max_size: where the longer edge would be longer, it gets this length instead.
        sample_style: "range" or "choice".
        interp: a Pillow resampling filter.
    """

    def __init__(
        self,
        short_edge_length: int | list[int] | tuple[int, ...],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ):
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        assert not self.is_range or len(short_edge_length) == 2, (
            f"short_edge_length must be two values using 'range' sample style. Got {short_edge_length}!"
        )
        self._init(locals())

    def get_transform(self, image):
        h, w = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        return ResizeTransform(h, w, *self.get_output_shape(h, w, size, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The new (height, width) of an image of size (oldh, oldw), rounded half up."""
        scale = short_edge_length / min(oldh, oldw)
        # The short edge is set and not computed, as rounding could make it a pixel shorter.
        newh, neww = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        if max(newh, neww) > max_size:
            shrink = max_size / max(newh, neww)
            newh, neww = newh * shrink, neww * shrink
        return int(newh + 0.5), int(neww + 0.5)


class ResizeScale(Augmentation):
    """Resize to fit into a target box that is scaled by a random factor in [min_scale, max_scale].

    Followed by :class:`FixedSizeCrop`, this is large-scale jittering.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ):
        self._init(locals())

    def get_transform(self, image):
        scale = np.random.uniform(self.min_scale, self.max_scale)
        h, w = image.shape[:2]
        ratio = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = np.round(np.multiply((h, w), ratio)).astype(int)
        return ResizeTransform(h, w, int(new_h), int(new_w), self.interp)


class RandomRotation(Augmentation):
    """Rotate counter-clockwise by a random angle around a random centre.

    Args:
        angle: degrees. (smallest, largest) for the style "range", a list of angles for "choice", or one angle.
        expand, interp: see :class:`RotationTransform`.
        center: relative to the image, with (0, 0) at its top left and (1, 1) at its bottom right. Two corners of a
            region for "range", a list of points for "choice", or one point. None is the image's centre.
        sample_style: "range" or "choice".
    """

    def __init__(self, angle, expand=True, center=None, sample_style="range", interp=None):
        assert sample_style in ("range", "choice"), sample_style
        self.is_range = sample_style == "range"
        if isinstance(angle, float | int):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], float | int):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image):
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(*self.angle)
            if self.center is not None:
                (left, top), (right, bottom) = self.center
                center = np.random.uniform(left, right), np.random.uniform(top, bottom)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)


class FixedSizeCrop(Augmentation):
    """Crop the part of an image that exceeds ``crop_size`` at a random place, and pad the right and the bottom up to
    it.

    Args:
        crop_size: (height, width).
        pad: whether smaller images are padded.
        pad_value, seg_pad_value: the padding's value in images and in segmentation maps.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ):
        self._init(locals())

    def get_transform(self, image):
        size = np.array(image.shape[:2])
        target = np.array(self.crop_size)
        room = np.maximum(size - target, 0)
        y0, x0 = (int(v) for v in np.round(room * np.random.uniform(0.0, 1.0)))
        height, width = (int(v) for v in size)
        crop = CropTransform(x0, y0, int(target[1]), int(target[0]), width, height)
        if not self.pad:
            return TransformList([crop])
        missing_h, missing_w = (int(v) for v in np.maximum(target - size, 0))
        kept_h, kept_w = (int(v) for v in np.minimum(size, target))
        padding = PadTransform(0, 0, missing_w, missing_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)
        return TransformList([crop, padding])


class RandomCrop(Augmentation):
    """Crop a rectangle of a given or random size at a random place.

    Args:
        crop_type: the meaning of ``crop_size`` for an image of (H, W):
            "relative": the crop's share of (H, W), in (0, 1];
            "relative_range": the smallest share of (H, W), the largest is 1;
            "absolute": (height, width) in pixels, at most the image's;
            "absolute_range": (smallest, largest) number of pixels, for height and width.
        crop_size: two numbers.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float]):
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range")
        self._init(locals())

    def get_transform(self, image):
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        assert h >= crop_h and w >= crop_w, f"{self} asks for more than an image of {h} x {w} has"
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw a crop's (height, width) in pixels for an image of this size."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        if self.crop_type == "absolute_range":
            least, most = self.crop_size
            assert least <= most
            crop_h = np.random.randint(min(h, least), min(h, most) + 1)
            return crop_h, np.random.randint(min(w, least), min(w, most) + 1)
        share = np.asarray(self.crop_size, dtype=np.float32)
        if self.crop_type == "relative_range":
            share = share + np.random.rand(2) * (1 - share)
        return int(h * share[0] + 0.5), int(w * share[1] + 0.5)


class _RandomBlend(Augmentation):
    """Blends an image with a reference of it, by a random weight of the image in [min, max].

    A weight below 1 reduces the property in the subclass's name, a weight above 1 increases it.
    """

    def __init__(self, intensity_min: float, intensity_max: float):
        self._init(locals())

    def _blend(self, colourless) -> BlendTransform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=colourless, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomBlend):
    """Change the contrast: blend with the image's mean."""

    def get_transform(self, image):
        return self._blend(image.mean())


class RandomBrightness(_RandomBlend):
    """Change the brightness: blend with black."""

    def get_transform(self, image):
        return self._blend(0)


class RandomSaturation(_RandomBlend):
    """Change the saturation: blend an RGB image with its luma."""

    def get_transform(self, image):
        assert image.shape[-1] == 3, "RandomSaturation only works on RGB images"
        return self._blend(image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis])
