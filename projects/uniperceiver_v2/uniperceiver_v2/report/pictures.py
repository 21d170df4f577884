"""Images as data URIs."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

from PIL import Image

from ..errors import UnreadableImage, UserError
from ..reading import read_image
from .blocks import Box, Picture

LARGEST = 360  # pixels of the longer side; larger images are made smaller
_PHOTOGRAPH = 160  # from this size on JPEG, whose traces nobody sees then


def picture(file_name: str, boxes: Sequence[Box] = (), alt: str = "") -> Picture:
    """An image file with boxes. An image that cannot be read becomes an empty picture that says so."""
    try:
        uri, width, height = _embedded(file_name)
    except (UnreadableImage, UserError):
        return Picture("", 160, 120, (), f"{file_name} cannot be read")
    return Picture(uri, width, height, tuple(boxes), alt)


@functools.lru_cache(maxsize=512)
def _embedded(file_name: str) -> tuple[str, int, int]:
    """(data URI, width and height of the image itself)."""
    image = Image.fromarray(read_image({"file_name": file_name}, "RGB"))
    width, height = image.size
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if max(image.size) < _PHOTOGRAPH:
        image.save(content, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(content, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", width, height
