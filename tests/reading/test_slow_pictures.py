"""Pictures that would take minutes to decode are refused in a moment, and others are read as before."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from uniperceiver_v2.errors import UnreadableImage
from uniperceiver_v2.reading import decode_image
from uniperceiver_v2.reading.images import read_size
from uniperceiver_v2.reading.slow_pictures import MOST_COMMENTS, MOST_SCANS, require_few_scans


def saved(format: str, **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format, **options)
    return file.getvalue()


def with_scans(jpeg: bytes, count: int) -> bytes:
    """Its last scan, once more and more often."""
    place = jpeg.rindex(b"\xff\xda")
    return jpeg[:place] + jpeg[place:-2] * count + jpeg[-2:]


def with_comment(gif: bytes, part: bytes) -> bytes:
    place = gif.index(b"\x2c", 13 + 3 * 2 ** (gif[10] % 8 + 1))
    return gif[:place] + b"\x21\xfe" + part + b"\0" + gif[place:]


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_many_scans_is_refused(progressive):
    jpeg = saved("JPEG", progressive=progressive)
    usual = len(re.findall(rb"\xff\xda", jpeg))
    most = with_scans(jpeg, MOST_SCANS - usual + 1)
    require_few_scans(most)
    if progressive:
        assert decode_image(most, "RGB").shape == (40, 56, 3)
    with pytest.raises(ValueError, match=r"^is a JPEG of more than 100 scans"):
        decode_image(with_scans(jpeg, MOST_SCANS - usual + 2), "RGB")


def test_what_only_looks_like_scans_is_none():
    jpeg = saved("JPEG")
    thumbnail = b"\xff\xed" + (2 + 2000).to_bytes(2, "big") + b"\xff\xda" * 1000
    behind = b"\xff\xda" * 1000
    changed = jpeg[:2] + thumbnail + jpeg[2:] + behind
    np.testing.assert_array_equal(decode_image(changed, "RGB"), decode_image(jpeg, "RGB"))


def test_a_gif_with_long_comments_is_refused(tmp_path):
    gif = saved("GIF")
    short, path = with_comment(gif, b"\x01c" * 1000), tmp_path / "slow.gif"
    np.testing.assert_array_equal(decode_image(short, "RGB"), decode_image(gif, "RGB"))
    path.write_bytes(with_comment(gif, b"\x01c" * (MOST_COMMENTS // 2)))
    for read in (lambda: decode_image(path.read_bytes(), "RGB"), lambda: read_size(str(path))):
        with pytest.raises(
            (ValueError, UnreadableImage), match=r"is a GIF with more than 262144 bytes before its picture"
        ):
            read()
