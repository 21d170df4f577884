"""Image files as arrays: the one door through which pixels come in."""

import io
import os
import zlib
from struct import error as StructError

import numpy as np
from detectron2.data import detection_utils
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UnreadableImage

# What Pillow raises for files that are missing, cut short or not images, beside what it is documented to
# raise.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, StructError, zlib.error, Image.DecompressionBombError)


def read_image(record: dict, image_format: str) -> np.ndarray:
    """The record's image as uint8 [H, W, 3]: of its "image_bytes" where it has them, else of the file "file_name".

    Raises:
        UnreadableImage: so that training can go on without it.
    """
    try:
        if "image_bytes" in record:
            image = _decode(record["image_bytes"], image_format)
        else:
            image = detection_utils.read_image(record["file_name"], format=image_format)
        if "width" in record:
            detection_utils.check_image_size(record, image)
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{os.path.abspath(record['file_name'])}: {reason}") from error
    return image


def _decode(content: bytes, image_format: str) -> np.ndarray:
    """An encoded image as :func:`detection_utils.read_image` gives that of a file."""
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:  # whose message would name a place in memory, another one each time
        raise ValueError("cannot identify the image's format") from error
    with image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except Exception:  # a broken EXIF block must not cost the image
            turned = False
        return detection_utils.convert_PIL_to_numpy(ImageOps.exif_transpose(image) if turned else image, image_format)
