"""Image files in every format and mode, and formats that are not to be read."""

import io
import random
from pathlib import Path

import numpy as np
from mutations import damaged_bytes
from PIL import Image, features
from running import Damaged, SilentDamage

from uniperceiver_v2.data.mappers.images import ClassificationMapper
from uniperceiver_v2.reading import read_image, read_size

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 9\n%%EndComments\nshowpage\n%%EOF\n"


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


class Kind:
    together = 10

    def __init__(self, folder: Path):
        pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
        colour = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = 6
        grey16 = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        self._good = [
            ("a.png", encoded(colour, "PNG")),
            ("a.png", encoded(colour.quantize(), "PNG", transparency=0)),
            ("a.png", encoded(colour.convert("LA"), "PNG")),
            ("a.png", encoded(colour.convert("1"), "PNG")),
            ("a.png", encoded(grey16, "PNG")),
            ("a.jpg", encoded(colour, "JPEG", exif=exif)),
            ("a.jpg", encoded(colour, "JPEG", progressive=True)),
            ("a.jpg", encoded(colour.convert("CMYK"), "JPEG")),
            ("a.webp", encoded(colour, "WEBP", exif=exif)),
            ("a.webp", encoded(colour, "WEBP", lossless=True)),
            ("a.gif", encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90), colour])),
            *(("a.tif", encoded(colour, "TIFF", compression=c)) for c in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")),
            ("a.tif", encoded(grey16, "TIFF")),
            ("a.bmp", encoded(colour, "BMP")),
            ("a.jpg", EPS),
            *(("a.png", encoded(colour, other)) for other in ("PPM", "ICO", "PCX", "TGA", "PDF", "JPEG2000")),
            *(("a.avif", encoded(colour, "AVIF")) for supported in (features.check("avif"),) if supported),
        ]
        self._pixels = {}
        for name, content in self._good:
            if name == "a.png" and content.startswith(b"\x89PNG"):
                self._pixels[len(content)] = content
        self._mapper = ClassificationMapper("digits", ("a", "b"), "RGB", image_size=32)

    def damaged(self, rng: random.Random) -> Damaged:
        name, content = rng.choice(self._good)
        if rng.random() < 0.1:  # the header of one before the content of another
            other = rng.choice(self._good)[1]
            return Damaged(name, content[: rng.randrange(64)] + other[rng.randrange(64) :])
        return Damaged(name, damaged_bytes(rng, content))

    def read(self, path: Path, only_bytes: bool) -> None:
        pixels = read_image({"file_name": str(path)}, "RGB")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise SilentDamage(f"pixels {pixels.dtype} {pixels.shape}")
        if read_size(str(path)) != pixels.shape[:2]:
            raise SilentDamage(f"a size of {read_size(str(path))} and pixels of {pixels.shape[:2]}")
        self._require_unchanged(path, pixels)
        self._mapper({"file_name": str(path), "image_id": 1, "label": 0})

    def _require_unchanged(self, path: Path, pixels: np.ndarray) -> None:
        """Of PNG, which has checksums, a file with a few other bytes has the pixels of the whole one, or none."""
        content = path.read_bytes()
        whole = self._pixels.get(len(content))
        if whole is None or sum(a != b for a, b in zip(content, whole)) > 2:
            return
        path.with_name("whole.png").write_bytes(whole)
        expected = read_image({"file_name": str(path.with_name("whole.png"))}, "RGB")
        if not np.array_equal(pixels, expected):
            raise SilentDamage("other pixels than those of the whole file")

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message
