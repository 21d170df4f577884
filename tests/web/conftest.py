"""The page's parts around the smallest model with random weights."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

_SHARED = Path(__file__).parents[1] / "predictor" / "conftest.py"
_spec = importlib.util.spec_from_file_location("predictor_fixtures", _SHARED)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
predictor, pixels, files, directory = _module.predictor, _module.pixels, _module.files, _module.directory
picture_files, photograph, bad_files = _module.picture_files, _module.photograph, _module.bad_files


@pytest.fixture
def answers(predictor):
    from uniperceiver_v2.web.answers import Answers

    made = Answers(predictor, name="tiny")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path, pixels) -> Path:
    """A folder to search: eleven pictures, one of them in a folder of its own, and what is no picture."""
    place = tmp_path / "my pictures"
    (place / "ö").mkdir(parents=True)
    (place / ".hidden").mkdir()
    for number in range(10):
        Image.fromarray(pixels(40 + number, 50, seed=number)).save(place / f"{number:02d}.png")
    Image.fromarray(pixels(seed=10)).save(place / "ö" / "z ä.jpg", quality=95)
    (place / "broken.png").write_bytes((place / "00.png").read_bytes()[:100])
    (place / "notes.txt").write_text("no picture")
    Image.fromarray(pixels(seed=11)).save(place / ".hidden" / "secret.png")
    return place
