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
from PIL import Image

from uniperceiver_v2.data.mappers.augmentations import LARGEST_RESIZED
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.reading import disk, members_of, read_image, read_json
from uniperceiver_v2.reading.images import LARGEST_PICTURE
from uniperceiver_v2.reading.tars import LARGEST_EXTENDED

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
ROW = re.compile(r"^\| .+ \| ([\d,]+)(?: \w+)? \| `([\w.]+)\.([A-Z_]+)` \|$", re.MULTILINE)


def test_the_document_has_the_constants_of_the_code():
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(rows) == 14
    for number, module, name in rows:
        assert getattr(importlib.import_module(f"uniperceiver_v2.{module}"), name) == int(number.replace(",", "")), name


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


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.new("F", (3, 2), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=r"a\.tif: its pixels are numbers of 32 bits"):
        read_image({"file_name": str(tmp_path / "a.tif")}, "RGB")
