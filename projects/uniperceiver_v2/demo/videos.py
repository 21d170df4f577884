"""Videos and cameras, frame by frame: no more than one frame is in memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from PIL import Image

from uniperceiver_v2.errors import UserError

DEFAULT_RATE = 25.0  # frames a second, where a camera does not say
NO_DISPLAY = "there is no display for a window: name a folder with --output"


class Frames:
    """The frames of a video file or a camera, uint8 [H,W,3], RGB, one after the other.

    Attributes:
        rate: frames a second.
        count: the number of frames that the file's header promises; None if it does not.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str | int):
        if isinstance(source, str) and not os.path.isfile(source):
            raise UserError(f"there is no video {source}")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise UserError(f"{source} cannot be read as a video" if isinstance(source, str) else "there is no camera")
        rate, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= 1000 else DEFAULT_RATE
        self.count = int(count) if isinstance(source, str) and count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


class VideoFile:
    """Writes cards as the frames of an MP4 file, and a line of JSON for each beside it.

    Both files appear under their names when they are complete.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self._video = path.with_name(f".{path.stem}.partial.mp4")
        self._lines_path = path.with_name(f".{path.stem}.partial.jsonl")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._lines = open(self._lines_path, "w", encoding="utf-8")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> VideoFile:
        return self

    def add(self, card: Image.Image, content: dict) -> None:
        """
        Raises:
            UserError: OpenCV cannot write videos here.
        """
        if self._writer is None:
            self._size = (card.width + card.width % 2, card.height + card.height % 2)  # codecs want even sizes
            self._writer = cv2.VideoWriter(str(self._video), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, self._size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path} cannot be written: OpenCV has no encoder for it")
        page = Image.new("RGB", self._size, "white")
        page.paste(card)
        self._writer.write(cv2.cvtColor(np.asarray(page), cv2.COLOR_RGB2BGR))
        self._lines.write(json.dumps(content, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """What is there is kept if somebody ends the recording by Ctrl-C, and removed after an error."""
        self._lines.close()
        if self._writer is not None:
            self._writer.release()
        if self._writer is not None and (kind is None or issubclass(kind, KeyboardInterrupt)):
            os.replace(self._video, self.path)
            os.replace(self._lines_path, self.path.with_suffix(".jsonl"))
        for path in (self._video, self._lines_path):
            with contextlib.suppress(OSError):
                path.unlink()


def require_display() -> None:
    """OpenCV's window library ends the whole process where there is no display.

    Raises:
        UserError: there is none.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(NO_DISPLAY)


def show(picture: Image.Image, wait: int) -> bool:
    """Show a picture in a window until a key is pressed, or for ``wait`` milliseconds.

    Returns:
        whether to go on: Esc and q end.

    Raises:
        UserError: OpenCV has no windows here.
    """
    try:
        cv2.imshow("Uni-Perceiver v2", cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))
        return cv2.waitKey(wait) & 0xFF not in (27, ord("q"))
    except cv2.error as error:
        raise UserError(NO_DISPLAY) from error
