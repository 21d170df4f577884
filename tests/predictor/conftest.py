"""A predictor around the smallest model, and pictures of all kinds."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

LABELS = ("zero", "a red seven", "two")


@pytest.fixture
def predictor(tiny_config, tiny_model):
    """Random weights; images are made 64 pixels high, or the square 32."""
    from uniperceiver_v2 import Predictor

    tiny_config.INPUT.MIN_SIZE_TEST = 64
    tiny_config.INPUT.MAX_SIZE_TEST = 128
    tiny_model.tasks["classification"].settings = tiny_model.tasks["classification"].settings.__class__(image_size=32)
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
