"""What people give as images: files, URLs of files, Pillow images, arrays, tensors, and lists of them.

A bad one ends in one sentence that names it.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import UnreadableImage, UserError
from ..reading import READ_ERRORS, pixels_of, read_image, read_reduced

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
ImagesLike: TypeAlias = "Sequence[ImageLike] | np.ndarray | torch.Tensor"


class BadImages(UserError):
    """Some images of a list cannot be used. The others have their results.

    Attributes:
        failures: {place in the list: a sentence with the image's name}.
        results: what the call would have returned, with None (or a row of NaN) in the places of the bad images.
    """

    def __init__(self, failures: dict[int, str], results: Any):
        self.failures, self.results = failures, results
        sentences = list(failures.values())
        count = f"{len(sentences)} images cannot be used: " if len(sentences) > 1 else ""
        super().__init__(count + "; ".join(sentences))


@dataclass(frozen=True, eq=False)
class Source:
    """An image as it was given, which is read when somebody needs its pixels.

    Attributes:
        value: a path, a Pillow image, an array or a tensor.
        name: the path, or the image's place among those that were given, for messages.
    """

    value: Any
    name: str

    def pixels(self) -> np.ndarray:
        """uint8 [H,W,3], RGB, upright.

        Raises:
            UnreadableImage: the message names the image.
        """
        if isinstance(self.value, str):
            return read_image({"file_name": self.value}, "RGB")
        try:
            if isinstance(self.value, Image.Image):
                pixels = pixels_of(self.value, "RGB")
            elif isinstance(self.value, torch.Tensor):
                pixels = _of_tensor(self.value)
            else:
                pixels = _of_array(self.value)
        except READ_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImage(f"{self.name}: {reason}") from error
        if 0 in pixels.shape:
            raise UnreadableImage(f"{self.name}: it has no pixels, its size is {pixels.shape[1]} x {pixels.shape[0]}")
        return pixels

    def reduced(self, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The pixels for somebody who reduces them to less than ``side``, and the (height, width) of the whole.

        A large JPEG is not decoded as a whole. Raises what :meth:`pixels` raises.
        """
        if isinstance(self.value, str):
            return read_reduced(self.value, side)
        pixels = self.pixels()
        return pixels, (pixels.shape[0], pixels.shape[1])


def sources_of(images: Any) -> tuple[list[Source], bool]:
    """The images that were given, and whether it was a single one and no list.

    A batch, an array [B,H,W,C] or a tensor [B,C,H,W], is a list.
    """
    single = isinstance(images, str | os.PathLike | Image.Image) or (
        isinstance(images, np.ndarray | torch.Tensor) and images.ndim < 4
    )
    if single:
        return [_source(images, "the image")], True
    try:
        given = list(images)
    except TypeError:
        raise UserError(f"an image cannot be {_kind(images)}: {_EXPECTED}") from None
    return [_source(image, f"image {place} of the list") for place, image in enumerate(given)], False


_EXPECTED = "give a path, a file: URL, a Pillow image, an RGB array [H,W,3] or a tensor [3,H,W]"


def _source(image: Any, place: str) -> Source:
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, bytes):
        image = os.fsdecode(image)
    if isinstance(image, str):
        path = path_of(image)
        return Source(path, path)
    return Source(image, getattr(image, "filename", "") or place)


def path_of(text: str) -> str:
    """The path that a text names: itself, or that of a ``file:`` URL.

    An address of the web stays as it is, and there is no such file.
    """
    parts = urllib.parse.urlsplit(text) if text[:5].lower() == "file:" else None
    if parts is None:
        return os.path.expanduser(text)
    host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
    return urllib.request.url2pathname(host + parts.path)


def _of_array(array: Any) -> np.ndarray:
    """RGB uint8 [H,W,3] of [H,W], [H,W,1], [H,W,3] or [H,W,4]."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"an image cannot be {_kind(array)}: {_EXPECTED}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"an array of the shape {list(array.shape)} is no image: arrays are [H,W,3], tensors [3,H,W]")
    return _rgb_of_8_bits(array)


def _of_tensor(tensor: torch.Tensor) -> np.ndarray:
    """RGB uint8 [H,W,3] of [H,W], [1,H,W], [3,H,W] or [4,H,W]."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ValueError(f"a tensor of the shape {list(tensor.shape)} is no image: tensors are [3,H,W], arrays [H,W,3]")
    values = tensor.detach().cpu()
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    return _rgb_of_8_bits(values.permute(1, 2, 0).numpy())


def _rgb_of_8_bits(array: np.ndarray) -> np.ndarray:
    """Without transparency, with three channels, as uint8. 16 bits lose the lower ones; floats are in 0..1."""
    colours = array[:, :, :3]
    if colours.dtype == np.uint16:
        colours = (colours >> 8).astype(np.uint8)
    elif colours.dtype == bool:
        colours = colours.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(colours.dtype, np.floating):
        if colours.size and not (np.min(colours) >= 0 and np.max(colours) <= 1):
            raise ValueError("floating-point pixels have to be in 0..1; give values in 0..255 as uint8")
        colours = np.rint(colours * 255).astype(np.uint8)
    elif colours.dtype != np.uint8:
        raise ValueError(f"its pixels are {colours.dtype}; they have to be uint8, uint16 or floats in 0..1")
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
