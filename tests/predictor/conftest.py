"""A predictor around the smallest model, and pictures of all kinds."""

import importlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "projects" / "uniperceiver_v2" / "demo"
LABELS = ("zero", "a red seven", "two")


@pytest.fixture
def predictor(tiny_config, tiny_model):
    """Random weights; images are made 64 pixels high, or the square 32."""
    from uniperceiver_v2 import Predictor

    tiny_config.INPUT.MAX_SIZE_TEST = 128
    tiny_model.tasks["detection"].labels = tiny_model.tasks["classification"].labels = LABELS
    return Predictor.from_model(tiny_model, tiny_config)


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """pixels(height, width, seed): a smooth picture, uint8 [H,W,3]."""

    def make(height: int = 48, width: int = 60, seed: int = 0) -> np.ndarray:
        small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture
def files(tmp_path, pixels):
    """Paths of five pictures of four sizes."""
    sizes = ((48, 60), (60, 48), (48, 60), (30, 90), (100, 120))
    paths = []
    for number, size in enumerate(sizes):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels(*size, seed=number)).save(paths[-1])
    return paths


@pytest.fixture
def picture_files(pixels, tmp_path) -> dict[str, np.ndarray]:
    """Files as people have them, without loss: {path: their pixels, uint8 [H,W,3]}."""
    image = pixels()
    picture = Image.fromarray(image)
    grey = np.asarray(picture.convert("L"))
    as_grey = np.repeat(grey[:, :, None], 3, axis=2)
    palette = picture.quantize(16)
    opaque = picture.copy()
    opaque.putalpha(Image.fromarray(grey))
    cmyk = picture.convert("CMYK")
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    one_bit = Image.fromarray(grey > 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    lying = Image.fromarray(np.rot90(image).copy())
    cases = {
        "grey.png": (picture.convert("L"), as_grey, {}),
        "grey_alpha.png": (picture.convert("LA"), as_grey, {}),
        "16 bit.png": (sixteen, as_grey, {}),
        "16 bit.tif": (sixteen, as_grey, {}),
        "palette.gif": (palette, np.asarray(palette.convert("RGB")), {}),
        "palette.png": (palette, np.asarray(palette.convert("RGB")), {}),
        "rgba.png": (opaque, image, {}),
        "rgba.webp": (opaque, image, {"lossless": True, "exact": True}),
        "cmyk.tif": (cmyk, np.asarray(cmyk.convert("RGB")), {}),
        "bilevel.png": (one_bit, np.repeat((grey > 128)[:, :, None] * np.uint8(255), 3, axis=2), {}),
        "turned.png": (lying, image, {"exif": exif}),
        "animated.gif": (
            palette,
            np.asarray(palette.convert("RGB")),
            {"save_all": True, "append_images": [palette.rotate(90)]},
        ),
        "animated.png": (picture, image, {"save_all": True, "append_images": [picture.rotate(180)]}),
        "1 x 1.png": (Image.fromarray(pixels(1, 1)), pixels(1, 1), {}),
        "1 x 4000.png": (Image.fromarray(pixels(1, 4000)), pixels(1, 4000), {}),
        "4000 x 1.png": (Image.fromarray(pixels(4000, 1)), pixels(4000, 1), {}),
        "a name with blanks, ünï and 数字.png": (picture, image, {}),
    }
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, (written, _, options) in cases.items():
        written.save(folder / name, **options)
    return {str(folder / name): expected for name, (_, expected, _) in cases.items()}


@pytest.fixture
def photograph(pixels, tmp_path) -> str:
    """A file of a phone's 12 megapixels."""
    path = tmp_path / "photograph.jpg"
    Image.fromarray(pixels(3000, 4000)).save(path)
    return str(path)


@pytest.fixture
def bad_files(tmp_path, pixels) -> list[str]:
    """Paths of what is no picture. The first is a JPEG that is cut short."""
    folder = tmp_path / "bad"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(pixels(200, 200)).save(buffer, "JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "a text.jpg").write_text("no image at all")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "floats.tif")
    (folder / "bomb.png").write_bytes(_bomb())
    (folder / "a folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    names = ("truncated.jpg", "empty.png", "a text.jpg", "floats.tif", "bomb.png")
    return [str(folder / name) for name in (*names, "a folder.png", "pipe.png", "nowhere.png")]


def _bomb() -> bytes:
    """A PNG of some bytes that says it has 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def demo_module() -> Callable[[str], ModuleType]:
    """A module of the demo by its name. They import each other by their names alone, as a program's do."""

    def module_of(name: str) -> ModuleType:
        sys.path.insert(0, str(DEMO))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return module_of


@pytest.fixture
def demo(demo_module) -> Callable[..., int]:
    """The demo's ``main`` with these arguments. Returns the exit code."""
    return lambda *arguments: demo_module("demo").main([str(argument) for argument in arguments])


@pytest.fixture
def directory(predictor, tmp_path) -> Path:
    """The predictor, as a directory in Hugging Face's form."""
    predictor.cfg.TEST.IMS_PER_BATCH = 3
    predictor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
