"""Reads frames of clips: of video files, and of folders with an image for each frame."""

import contextlib
import os
from collections.abc import Iterator

import cv2
import numpy as np

from ..errors import UnreadableImage
from .images import read_image

_MISCOUNTED = 2  # some formats have no count of frames, and OpenCV takes it from the length in seconds


def read_frames(path: str, count: int, image_format: str) -> list[np.ndarray]:
    """Frames of a clip, evenly spaced over its length: uint8 [H,W,3] each.

    Of a clip with fewer frames some are given twice.

    Args:
        path: a video, or a folder of images whose names are in the order of time.
        count: the number of frames, at least 1.
        image_format: "RGB" or "BGR".

    Raises:
        UnreadableImage: there is no such clip, or a frame cannot be read.
    """
    if os.path.isdir(path):
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        chosen = [os.path.join(path, names[i]) for i in _places(len(names), count)]
        frames = [read_image({"file_name": name}, image_format) for name in chosen]
    else:
        frames = _read_video(path, count, image_format)
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise UnreadableImage(f"{os.path.abspath(path)} has no frames, or frames of several sizes")
    return frames


def check_frames(path: str) -> None:
    """Read every frame of a clip once, and keep none.

    Args:
        path: as in :func:`read_frames`.

    Raises:
        UnreadableImage: there is no such clip, a frame cannot be read or has another size, or a video ends early.
    """
    if os.path.isdir(path):
        names = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        shapes = [read_image({"file_name": name}, "RGB").shape for name in names]
    else:
        shapes = _shapes_of_video(path)
    if len(set(shapes)) != 1:
        raise UnreadableImage(f"{os.path.abspath(path)} has no frames, or frames of several sizes")


def _shapes_of_video(path: str) -> list[tuple[int, ...]]:
    """The shape of each frame of a whole video."""
    with _opened(path) as capture:
        promised, shapes = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), []
        while (read := capture.read())[0]:
            shapes.append(read[1].shape)
    if not shapes:
        raise UnreadableImage(f"{os.path.abspath(path)} cannot be read as a video")
    if len(shapes) < promised - _MISCOUNTED:
        raise UnreadableImage(f"{os.path.abspath(path)} ends early: {len(shapes)} of {promised} frames can be read")
    return shapes


@contextlib.contextmanager
def _opened(path: str) -> Iterator[cv2.VideoCapture]:
    if not os.path.isfile(path):
        raise UnreadableImage(f"there is no video {os.path.abspath(path)}")
    capture = cv2.VideoCapture(path)
    try:
        yield capture
    finally:
        capture.release()


def _places(length: int, count: int) -> list[int]:
    """The middles of ``count`` equal parts of a clip."""
    return [int((part + 0.5) * length / count) for part in range(count)] if length else []


def _read_video(path: str, count: int, image_format: str) -> list[np.ndarray]:
    with _opened(path) as capture:
        wanted = _places(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), count)
        frames: dict[int, np.ndarray] = {}
        place = 0
        while place <= max(wanted, default=-1) and capture.grab():
            if place in wanted:
                read, frame = capture.retrieve()
                if read:
                    frames[place] = frame if image_format == "BGR" else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            place += 1
    if not frames:
        raise UnreadableImage(f"{os.path.abspath(path)} cannot be read as a video")
    # A header may promise more frames than there are.
    return [frames[max((p for p in frames if p <= place), default=min(frames))] for place in wanted]
