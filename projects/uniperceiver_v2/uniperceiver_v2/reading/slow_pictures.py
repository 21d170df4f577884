"""Pictures of few bytes that a library would decode for minutes, told before it does."""

from __future__ import annotations

import re

MOST_SCANS = 100  # of a JPEG; each is a pass over all of its pixels, and encoders make twelve at most
MOST_COMMENTS = 2**18  # bytes before a GIF's picture, which Pillow joins one by one

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # \xff\x00 is a byte of the pixels, \xd0 to \xd7 lie among them
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_GIF_HEADER, _EXTENSION = 13, 0x21  # bytes before the palette; what is neither a palette nor a picture


def require_few_scans(jpeg: bytes) -> None:
    """
    Raises:
        ValueError: a JPEG has more than ``MOST_SCANS`` scans.
    """
    if jpeg.count(b"\xff\xda") <= MOST_SCANS:  # nearly all files; to walk through the markers takes longer
        return
    place = scans = 0
    while (marker := _MARKER.search(jpeg, place)) and marker[1][0] != _END:
        place = marker.end()
        if marker[1][0] == _START:
            continue
        place += int.from_bytes(jpeg[place : place + 2], "big")  # the length of what the marker begins
        scans += marker[1][0] == _SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"is a JPEG of more than {MOST_SCANS} scans, which takes too long to decode")


def require_short_comments(gif: bytes) -> None:
    """
    Args:
        gif: the beginning of a file, more than ``MOST_COMMENTS`` bytes if it is so long. Files of other formats pass.

    Raises:
        ValueError: comments and the like before the first picture of a GIF have more than ``MOST_COMMENTS`` bytes.
    """
    if not gif.startswith((b"GIF87a", b"GIF89a")) or len(gif) < _GIF_HEADER:
        return
    palette = 3 * 2 ** (gif[10] % 8 + 1) if gif[10] & 0x80 else 0
    place = first = _GIF_HEADER + palette
    while place < len(gif) and gif[place] == _EXTENSION:
        place += 2  # the sort of extension; then parts, each after its length, the last one of length 0
        while place < len(gif) and gif[place]:
            place += 1 + gif[place]
        place += 1
        if place - first > MOST_COMMENTS:
            raise ValueError(f"is a GIF with more than {MOST_COMMENTS} bytes before its picture")
