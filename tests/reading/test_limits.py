"""Every limit that docs/security.md names is the constant of the code, and holds."""

import importlib
import io
import json
import re
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from PIL import Image, features

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.data.mappers.augmentations import LARGEST_RESIZED
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.reading import disk, members_of, read_image, read_json
from uniperceiver_v2.reading.images import LARGEST_PICTURE
from uniperceiver_v2.reading.tars import LARGEST_EXTENDED
from uniperceiver_v2.web.limits import Limits

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
ROW = re.compile(r"^\| .+ \| ([\d,]+)(?: \w+)? \| `([a-z_.]+)\.([A-Z_]+)` \|$", re.MULTILINE)


def test_the_document_has_the_constants_of_the_code():
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(rows) == 24
    for number, module, name in rows:
        assert getattr(importlib.import_module(f"uniperceiver_v2.{module}"), name) == int(number.replace(",", "")), name


def test_the_document_has_the_times_of_the_code():
    document, defaults = DOCUMENT.read_text(encoding="utf-8"), get_cfg()
    add_uniperceiver_v2_config(defaults)
    assert (
        f"| {len(disk.WAITS)} further tries, {sum(disk.WAITS):.0f} s of waiting in all | `reading.disk.WAITS` |"
        in document
    )
    assert f"| {Limits().seconds:.0f} s; a step that has begun is not stopped | `--time-limit` (" in document
    rows = re.findall(r"^\| .+ \| ([\d,]+) s \| `PROCESSES\.([A-Z]+)` \|$", document, re.MULTILINE)
    assert {name: int(seconds.replace(",", "")) for seconds, name in rows} == dict(defaults.PROCESSES)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel. Its pixels, all black, take little."""
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2**14, LARGEST_PICTURE // 2**14 + 1))
    with pytest.raises(UnreadableImage, match=rf"a\.png: has 16384 x 4097 pixels, more than {LARGEST_PICTURE}"):
        read_image({"file_name": str(tmp_path / "a.png")}, "RGB")
    assert LARGEST_RESIZED == LARGEST_PICTURE


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LARGEST_FILE", 10)
    (tmp_path / "a.json").write_text(json.dumps("x" * 20))
    with pytest.raises(UserError, match=r"a\.json cannot be read as a text in UTF-8: has more than 10 bytes"):
        read_json(str(tmp_path / "a.json"))


def test_a_header_of_a_tar_that_is_too_large_is_refused(tmp_path):
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, LARGEST_EXTENDED + 1
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2 * LARGEST_EXTENDED))
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a shard: an extended header has"):
        list(members_of(str(tmp_path / "a.tar")))


def test_a_flipped_bit_among_the_pixels_of_a_png_is_found(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(buffer, "PNG")
    content = buffer.getvalue()
    begin = content.index(b"IDAT") + 4
    for place in range(begin + 2, begin + 200):
        (tmp_path / "a.png").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UnreadableImage, match=r"a\.png: its pixels are damaged"):
            read_image({"file_name": str(tmp_path / "a.png")}, "RGB")


REFERENCES = {
    "16 bits": (lambda: Image.new("I;16", (3, 2), 0x8034), "PNG", (128, 128, 128)),
    "CMYK": (lambda: Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "CMYK as JPEG": (lambda: Image.new("CMYK", (3, 2), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
    "grey with alpha": (lambda: Image.new("LA", (3, 2), (100, 0)), "PNG", (100, 100, 100)),
    "colour with alpha": (lambda: Image.new("RGBA", (3, 2), (100, 50, 20, 0)), "PNG", (100, 50, 20)),
    "one bit": (lambda: Image.new("1", (3, 2), 1), "PNG", (255, 255, 255)),
    "palette": (lambda: Image.new("RGB", (3, 2), (100, 50, 20)).quantize(), "PNG", (100, 50, 20)),
}


@pytest.mark.parametrize(("make", "form", "expected"), REFERENCES.values(), ids=REFERENCES.keys())
def test_every_mode_has_the_pixels_that_one_sees(tmp_path, make, form, expected):
    options = {"transparency": 0} if make().mode == "P" else {}
    make().save(tmp_path / "a", form, **options)
    pixels = read_image({"file_name": str(tmp_path / "a")}, "RGB")
    assert pixels.shape == (2, 3, 3) and (pixels == expected).all()
    assert (read_image({"file_name": str(tmp_path / "a")}, "BGR") == expected[::-1]).all()


def tiff(order: str, bits: int, photometric: int, pixels: bytes, sample_format: int = 1) -> bytes:
    """A grey TIFF of 2 x 1 pixels without compression; ``order`` is "<" or ">"."""
    shorts = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 339: sample_format}
    longs = {273: 8, 279: len(pixels)}  # where the pixels are, and how many bytes
    entries = sorted({**dict.fromkeys(shorts, 3), **dict.fromkeys(longs, 4)}.items())
    table = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", shorts[tag], 0) if kind == 3 else struct.pack(f"{order}I", longs[tag]))
        for tag, kind in entries
    )
    pixels += b"\0" * (-len(pixels) % 2)
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return header + pixels + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4


TIFFS = {
    "16 bits, the lower byte first": (tiff("<", 16, 1, b"\0\x40\xff\xff"), (64, 255)),
    "16 bits, the upper byte first": (tiff(">", 16, 1, b"\x40\0\xff\xff"), (64, 255)),
    "16 bits, zero is white": (tiff("<", 16, 0, b"\0\x40\xff\xff"), (191, 0)),
    "12 bits": (tiff("<", 12, 1, b"\x40\x0f\xff"), (64, 255)),
    "8 bits, zero is white": (tiff("<", 8, 0, b"\x40\xff"), (191, 0)),
}


@pytest.mark.parametrize(("content", "expected"), TIFFS.values(), ids=TIFFS.keys())
def test_a_grey_tiff_has_the_greys_that_one_sees(tmp_path, content, expected):
    (tmp_path / "a.tif").write_bytes(content)
    assert read_image({"file_name": str(tmp_path / "a.tif")}, "RGB")[0, :, 0].tolist() == list(expected)


@pytest.mark.parametrize(("bits", "pixels"), [(8, b"\xfb\x05"), (16, b"\xfb\xff\x05\0")])
def test_pixels_with_a_sign_are_refused(tmp_path, bits, pixels):
    (tmp_path / "a.tif").write_bytes(tiff("<", bits, 1, pixels, sample_format=2))
    with pytest.raises(UnreadableImage, match=r"a\.tif: its pixels have a sign"):
        read_image({"file_name": str(tmp_path / "a.tif")}, "RGB")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_a_format_beyond_the_list_is_refused(tmp_path):
    Image.new("RGB", (30, 20), (200, 100, 0)).save(tmp_path / "a.avif")
    with pytest.raises(UnreadableImage, match=r"a\.avif: cannot identify the image's format"):
        read_image({"file_name": str(tmp_path / "a.avif")}, "RGB")


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.new("F", (3, 2), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=r"a\.tif: its pixels are numbers of 32 bits"):
        read_image({"file_name": str(tmp_path / "a.tif")}, "RGB")
