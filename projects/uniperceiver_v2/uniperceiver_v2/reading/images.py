"""Reads image files as arrays. All pixels from outside come through this file."""

import io
import os
import zlib
from struct import error as StructError
from typing import IO

import numpy as np
from detectron2.data import detection_utils
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UnreadableImage
from .disk import open_file, patiently, read_file
from .slow_pictures import MOST_COMMENTS, require_few_scans, require_short_comments

# Formats are recognised by content, not by suffix. Pillow's other formats are not allowed, as for EPS it starts another
# program, Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

_PNG_SIGNATURE = 8  # bytes before the first chunk of a PNG
_PNG_COLOURS, _PALETTE = 25, 3  # the byte that says what a PNG's pixels are; places in a palette
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of the last two
# Pixels of an image before it is decoded. Decoding takes up to fourteen bytes for each, of a WebP up to 26.
LARGEST_PICTURE = 2**26
LARGEST_WEBP = 2**25

# Pillow's documented and undocumented errors for files that are missing, truncated or not images.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, StructError, zlib.error, Image.DecompressionBombError)


def picture_endings() -> tuple[str, ...]:
    """Endings of the names of files that are looked for in a folder, lower-case, such as ".jpg"."""
    return tuple(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def read_image(record: dict, image_format: str) -> np.ndarray:
    """The record's image as uint8 [H, W, 3], from "image_bytes" if the record has them, otherwise from the file
    "file_name".

    Args:
        record: if it has "width" and "height", they must be the image's.
        image_format: "RGB" or "BGR".

    Raises:
        UnreadableImage: the image is broken or has another size. Training can continue without it.
        UserError: the disk is at fault; see :func:`~uniperceiver_v2.reading.disk.patiently`.
    """
    try:
        content = record["image_bytes"] if "image_bytes" in record else read_file(record["file_name"])
        image = decode_image(content, image_format)
        if "width" in record:
            detection_utils.check_image_size(record, image)
    except READ_ERRORS as error:
        raise _unreadable(record["file_name"], error) from error
    return image


def _unreadable(path: str, error: Exception) -> UnreadableImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImage(f"{os.path.abspath(path)}: {reason}")


def read_reduced(path: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image for somebody who reduces it anyway, in RGB, and the (height, width) of the whole.

    A JPEG is decoded at a half, a quarter or an eighth of its size, if its shorter side then still has ``side`` pixels.
    A photograph of 12 megapixels takes a hundredth of the memory so. All other images are read whole.

    Raises:
        UnreadableImage: the image is broken.
        UserError: the disk is at fault.
    """
    try:
        with opened_image(read_file(path)) as image:
            size = _upright_size(image)
            image.draft(image.mode, (side, side))
            return pixels_of(image, "RGB"), size
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def decode_image(content: bytes, image_format: str) -> np.ndarray:
    """Decode an image, and rotate it as EXIF says, like Detectron2's ``detection_utils.read_image``.

    Raises:
        ValueError: its format is not one of ``FORMATS``.
        OSError, SyntaxError, ...: Pillow's errors for damaged content.
    """
    with opened_image(content) as image:
        return pixels_of(image, image_format)


def opened_image(content: bytes) -> Image.Image:
    """An image whose header is read, and whose pixels are not decoded yet.

    Raises:
        ValueError: its format is not one of ``FORMATS``, it has too many pixels, or it would take too long to decode.
        OSError, SyntaxError, ...: Pillow's errors for damaged content.
    """
    image = _identified(io.BytesIO(content))
    width, height = image.size
    most = LARGEST_WEBP if image.format == "WEBP" else LARGEST_PICTURE
    if width * height > most:
        raise ValueError(f"has {width} x {height} pixels, more than {most} together")
    if image.format == "PNG":
        _require_checksums(content)
    if image.format in ("JPEG", "MPO"):
        require_few_scans(content)
    return image


def _identified(file: IO[bytes]) -> Image.Image:
    require_short_comments(file.read(MOST_COMMENTS + 2**10))
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:  # its message has a memory address, which differs each time
        raise ValueError(f"cannot identify the image's format as one of {', '.join(FORMATS)}") from error


def _require_checksums(png: bytes) -> None:
    """Compare the checksums of a PNG's pixels, which Pillow leaves out, and require the palette that they need.

    Raises:
        ValueError: a checksum is wrong, or there is no palette. Pillow would read other pixels than were saved.
    """
    content, place, has_palette = memoryview(png), _PNG_SIGNATURE, False
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        data, end = content[place + 4 : place + 8 + size], place + 8 + size
        has_palette = has_palette or data[:4] == b"PLTE"
        if data[:4] == b"IDAT" and png[_PNG_COLOURS] == _PALETTE and not has_palette:
            raise ValueError("its pixels are places in a palette, which it does not have")
        if data[:4] == b"IDAT" and end + 4 > len(content):
            raise ValueError(f"image file is truncated: its pixels at byte {place} go on behind its end")
        if data[:4] == b"IDAT" and zlib.crc32(data) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"its pixels are damaged at byte {place}: their checksum is another")
        place = end + 4


def pixels_of(image: Image.Image, image_format: str) -> np.ndarray:
    """The pixels of an opened image, rotated as EXIF says: uint8 [H, W, 3]. Of an animation, its present frame.

    Raises:
        ValueError: its pixels have 32 bits or a sign.
        OSError, SyntaxError, ...: Pillow's errors for damaged content.
    """
    upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    return detection_utils.convert_PIL_to_numpy(_of_8_bits(upright, image), image_format)


def _of_8_bits(upright: Image.Image, source: Image.Image) -> Image.Image:
    """An image whose channels have 8 bits. Of more bits the upper ones are kept, as Pillow does with colours; of greys
    it would make everything above 255 white.

    Args:
        source: the image as it was opened, with the tags of a TIFF.

    Raises:
        ValueError: the pixels are numbers of 32 bits or have a sign, so that nobody knows which is white.
    """
    tags = getattr(source, "tag_v2", {})
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("its pixels have a sign; save it without, so that it is known what is white")
    # PNG has 16 bits at most, which older versions of Pillow read as 32.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and source.format == "PNG"):
        bits = tags[_BITS][0] if _BITS in tags else 16
        grey = (np.asarray(upright) >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)
    if upright.mode in ("I", "F"):
        raise ValueError(
            "its pixels are numbers of 32 bits; save it with 8 or 16 bits, so that it is known what is white"
        )
    return upright


def read_size(path: str) -> tuple[int, int]:
    """(height, width) in pixels of an image, turned as EXIF says. Only the file's header is read.

    Raises:
        UnreadableImage: the file is missing or not an image.
        UserError: the disk is at fault.
    """
    try:
        return patiently(lambda: _size(path), path)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _size(path: str) -> tuple[int, int]:
    with open_file(path) as file, _identified(file) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF's number of how the image has to be turned, 1 for not at all."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not make the image unreadable
        return 1
