"""A tiny digit_scenes tree, written once for all tests of this folder."""

import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[2] / "datasets"


@pytest.fixture(scope="session", autouse=True)
def programs_importable():
    sys.path.insert(0, str(PROGRAMS))
    yield
    sys.path.remove(str(PROGRAMS))


@pytest.fixture(scope="session")
def prepare(programs_importable):
    """The function behind the program: (output, seed, train_scenes, test_scenes) -> whether it wrote."""
    from prepare_digit_scenes import prepare

    return prepare


@pytest.fixture(scope="session")
def tree(prepare, tmp_path_factory) -> Path:
    """60 training and 20 test scenes."""
    output = tmp_path_factory.mktemp("datasets") / "digit_scenes"
    prepare(output, train_scenes=60, test_scenes=20)
    return output
