"""Transforms that fvcore lacks: resizing by Pillow and rotation by OpenCV.

Coordinates are continuous. An image of H x W pixels covers [0, W] x [0, H], and a pixel covers a unit square.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from PIL import Image

__all__ = ["ResizeTransform", "RotationTransform"]

_TORCH_MODE = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


class ResizeTransform(Transform):
    """Resize from (h, w) to (new_h, new_w) pixels.

    Pillow resizes uint8 images. It filters when it shrinks. ``F.interpolate`` resizes other types, without a filter.

    Args:
        interp: a Pillow resampling filter, bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """[h, w] or [h, w, C] to [new_h, new_w] or [new_h, new_w, C], of the same type."""
        assert img.shape[:2] == (self.h, self.w), f"Expected {(self.h, self.w)}, got {img.shape[:2]}"
        assert img.ndim <= 4
        interp = self.interp if interp is None else interp
        if img.dtype != np.uint8:
            return self._resize_floats(img, interp)
        # Pillow takes single-channel images only without a channel axis.
        channel_axis = img.ndim == 3 and img.shape[2] == 1
        picture = Image.fromarray(img[:, :, 0] if channel_axis else img)
        resized = np.asarray(picture.resize((self.new_w, self.new_h), interp))
        return resized[:, :, None] if channel_axis else resized

    def _resize_floats(self, img: np.ndarray, interp: int) -> np.ndarray:
        mode = _TORCH_MODE[interp]
        pixels = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)  # [h, w, C]
        resized = F.interpolate(
            pixels.permute(2, 0, 1)[None],
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points [N, 2] (x, y), in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a map of labels, without mixing labels."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        """Resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate an h x w image counter-clockwise.

    Args:
        angle: in degrees.
        expand: whether the canvas is enlarged to contain the whole rotated image. Otherwise it stays h x w and corners
            are cut off.
        center: (x, y), the centre of the rotation. The default is the image's centre. It has no effect with ``expand``.
        interp: an OpenCV interpolation flag, ``cv2.INTER_LINEAR`` by default.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ):
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            bounds = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int)
            self.bound_w, self.bound_h = int(bounds[0]), int(bounds[1])
        self.rm_coords = self._rotation_matrix()
        # OpenCV has pixel centres at whole numbers. Ours are half a pixel further right and down.
        self.rm_image = self._rotation_matrix(offset=-0.5)

    def _rotation_matrix(self, offset: float = 0.0) -> np.ndarray:
        """The affine map [2, 3] from this image to the rotated one, both shifted by ``offset``."""
        center = (float(self.center[0] + offset), float(self.center[1] + offset))
        matrix = cv2.getRotationMatrix2D(center, self.angle, 1)
        if self.expand:
            rotated_center = matrix[:, :2] @ (self.image_center + offset) + matrix[:, 2]
            matrix[:, 2] += np.array((self.bound_w / 2, self.bound_h / 2)) + offset - rotated_center
        return matrix

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate an image [h, w] or [h, w, C]. Pixels from outside the image become 0."""
        if len(img) == 0 or self.angle % 360 == 0:
            return img
        assert img.shape[:2] == (self.h, self.w)
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (self.bound_w, self.bound_h), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate points [N, 2] (x, y)."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate a map of labels, without mixing labels."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back and crop to h x w.

        Raises:
            NotImplementedError: with ``expand=False``, as corners were cut off.
        """
        if not self.expand:
            raise NotImplementedError("a rotation that cuts the image has no inverse")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])
