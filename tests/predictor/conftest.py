"""A predictor around the smallest model, and pictures of all kinds."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "projects" / "uniperceiver_v2" / "demo"
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


@pytest.fixture
def demo_module() -> Callable[[str], ModuleType]:
    """A module of the demo by its name. They import each other by their names alone, as a program's do."""

    def module_of(name: str) -> ModuleType:
        sys.path.insert(0, str(DEMO))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return module_of


@pytest.fixture
def demo(demo_module) -> Callable[..., int]:
    """The demo's ``main`` with these arguments. Returns the exit code."""
    return lambda *arguments: demo_module("demo").main([str(argument) for argument in arguments])


@pytest.fixture
def directory(predictor, tmp_path) -> Path:
    """The predictor, as a directory in Hugging Face's form."""
    predictor.cfg.TASKS.digits.IMAGE_SIZE = 32
    predictor.cfg.TEST.IMS_PER_BATCH = 3
    predictor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
