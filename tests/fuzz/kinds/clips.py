"""Video files, as video classification and datasets/check.py read them."""

import random
from pathlib import Path

import cv2
import numpy as np
from mutations import damaged_bytes
from running import Damaged, SilentDamage

from uniperceiver_v2.reading import check_frames, read_frames

FORMATS = {"a.mp4": "mp4v", "b.avi": "MJPG", "c.avi": "XVID", "d.mkv": "VP80"}
LENGTH, HEIGHT, WIDTH = 12, 24, 32


def video(path: Path, codec: str) -> bytes:
    """A short clip, as OpenCV writes it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (WIDTH, HEIGHT))
    for frame in np.random.default_rng(0).integers(0, 256, (LENGTH, HEIGHT, WIDTH, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    return path.read_bytes()


class Kind:
    together = 10

    def __init__(self, folder: Path):
        self._good = [(name, video(folder / name, codec)) for name, codec in FORMATS.items()]
        assert all(content for _, content in self._good)

    def damaged(self, rng: random.Random) -> Damaged:
        name, content = rng.choice(self._good)
        if rng.random() < 0.1:  # the header of one before the content of another
            other = rng.choice(self._good)[1]
            return Damaged(name, content[: rng.randrange(256)] + other[rng.randrange(256) :])
        return Damaged(name, damaged_bytes(rng, content))

    def read(self, path: Path, only_bytes: bool) -> None:
        frames = read_frames(str(path), 4, "RGB")
        if len(frames) != 4 or any(frame.dtype != np.uint8 or frame.shape[2:] != (3,) for frame in frames):
            raise SilentDamage(f"frames {[(frame.dtype, frame.shape) for frame in frames]}")
        check_frames(str(path))

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message
