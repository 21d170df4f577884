"""What the campaign's runs have in common: small data, and the settings of the smallest complete model."""

from pathlib import Path

import pytest

from .small_run import ENVIRONMENT, write_config


@pytest.fixture(scope="session")
def data(prepare_digit_scenes, tmp_path_factory) -> Path:
    """A small digit_scenes, so that loading takes little time."""
    root = tmp_path_factory.mktemp("datasets")
    prepare_digit_scenes(root / "digit_scenes", train_scenes=24, test_scenes=6)
    ENVIRONMENT["DETECTRON2_DATASETS"] = str(root)
    return root


@pytest.fixture
def config(data, tmp_path) -> Path:
    return write_config(tmp_path)
