"""Three pictures that all tests of own data describe."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .files import HEIGHT, WIDTH


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "my data" / "images"
    folder.mkdir(parents=True)
    for place in range(3):
        pixels = np.random.default_rng(place).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder
