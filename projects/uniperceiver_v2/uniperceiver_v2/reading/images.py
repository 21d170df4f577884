"""Image files as arrays: the one door through which pixels come in."""

import io
import os
import zlib
from struct import error as StructError

import numpy as np
from detectron2.data import detection_utils
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UnreadableImage
from .disk import read_file

# By content, whatever a file's suffix. Of Pillow's other formats one starts a program: EPS hands its content to
# Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

# What Pillow raises for files that are missing, cut short or not images, beside what it is documented to
# raise.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, StructError, zlib.error, Image.DecompressionBombError)


def read_image(record: dict, image_format: str) -> np.ndarray:
    """The record's image as uint8 [H, W, 3]: of its "image_bytes" where it has them, else of the file "file_name".

    Args:
        record: its "width" and "height", if given, have to be the image's.
        image_format: "RGB" or "BGR".

    Raises:
        UnreadableImage: the image itself is at fault, so that training can go on without it.
        UserError: the disk is at fault; see :func:`~uniperceiver_v2.reading.disk.patiently`.
    """
    try:
        content = record["image_bytes"] if "image_bytes" in record else read_file(record["file_name"])
        image = decode_image(content, image_format)
        if "width" in record:
            detection_utils.check_image_size(record, image)
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{os.path.abspath(record['file_name'])}: {reason}") from error
    return image


def decode_image(content: bytes, image_format: str) -> np.ndarray:
    """An encoded image as ``detection_utils.read_image`` of Detectron2 gives that of a file, upright as EXIF says.

    Raises:
        ValueError: it is none of ``FORMATS``.
        OSError, SyntaxError, ...: of Pillow's, for content that is damaged.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # whose message would name a place in memory, another one each time
        raise ValueError(f"cannot identify the image's format as one of {', '.join(FORMATS)}") from error
    with image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except Exception:  # a broken EXIF block must not cost the image
            turned = False
        return detection_utils.convert_PIL_to_numpy(ImageOps.exif_transpose(image) if turned else image, image_format)
