"""Draws the clips of digit_scenes: a digit that moves over a still background, an image for each frame.

A clip's class says which digit moves and where to: "a seven moving left". So its frames have to be put in order, and
a single one does not tell. All is a pure function of a NumPy generator.
"""

from __future__ import annotations

import cv2
import numpy as np
from digit_scenes_drawing import CLASS_NAMES, COLOURS_RGB, draw_background, handwriting, samples_by_class

FRAMES, SIZE = 6, 64
# The step of each motion, as (x, y).
MOTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "rising": (0, -1), "falling": (0, 1)}
CLIP_CLASSES = [f"a {name} {motion}" for name in CLASS_NAMES for motion in MOTIONS]


def draw_clip(rng: np.random.Generator, samples: range, number: int) -> list[np.ndarray]:
    """The frames, uint8 [SIZE,SIZE,3] each, of a clip of class ``number``."""
    label, motion = divmod(number, len(MOTIONS))
    ink = handwriting()[0][rng.choice(samples_by_class(samples)[label])]
    side = int(rng.integers(22, 31))
    alpha = np.clip(cv2.resize(ink, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)[:, :, None]
    colour = np.array(COLOURS_RGB[rng.choice(list(COLOURS_RGB))], dtype=np.float32)
    still = draw_background(rng)[:SIZE, :SIZE]
    step = np.array(list(MOTIONS.values())[motion])
    room = SIZE - side
    travel = rng.uniform(0.6, 1.0) * room
    start = rng.uniform(0, 1, size=2) * np.where(step == 0, room, room - travel) + np.where(step < 0, travel, 0)
    frames = []
    for index in range(FRAMES):
        x, y = np.rint(start + step * travel * index / (FRAMES - 1)).astype(int)
        frame = still.copy()
        part = frame[y : y + side, x : x + side]
        part += alpha * (colour - part)
        frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
    return frames
