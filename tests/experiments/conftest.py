"""The studies as modules, on a small digit_scenes and with a model that trains quickly."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from uniperceiver_v2.config import flat_settings
from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.data.datasets.builtin import register_grounding_sets, register_karpathy

PROJECT = Path(__file__).parents[2] / "projects" / "uniperceiver_v2"


@pytest.fixture(scope="session")
def imported() -> Callable[[str], ModuleType]:
    """A study by its name. The programs of the folder import each other by their names alone."""

    def module_of(name: str) -> ModuleType:
        sys.path.insert(0, str(PROJECT / "experiments"))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return module_of


@pytest.fixture
def changed_settings() -> Callable[[Mapping, Mapping], set[str]]:
    """The keys with different values in two configurations, without the folder of outputs."""

    def changed(one: Mapping, other: Mapping) -> set[str]:
        one, other = flat_settings(one), flat_settings(other)
        return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {"OUTPUT_DIR"}

    return changed


@pytest.fixture(scope="session")
def small_tree(prepare_digit_scenes, tmp_path_factory) -> Path:
    """The folder of data sets: digit_scenes with 24 training and 6 test scenes, one digit of every class and 40
    lines of test text. The development tree is the same."""
    root = tmp_path_factory.mktemp("studies")
    prepare_digit_scenes(root / "digit_scenes", train_scenes=24, test_scenes=6)
    for digits in (root / "digit_scenes" / "digits" / "test").iterdir():
        for image in sorted(digits.iterdir())[1:]:
            image.unlink()
    for corpus in (root / "digit_scenes" / "corpus").iterdir():
        corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:40]))
    (root / "development").mkdir()
    (root / "development" / "digit_scenes").symlink_to(root / "digit_scenes")
    return root


@pytest.fixture
def small_data(small_tree, monkeypatch, few_paraphrases) -> None:
    """Lets the registered names refer to the small trees."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_tree))
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    register_digit_scenes(str(small_tree / "digit_scenes"))
    for held_out in (register_karpathy, register_grounding_sets):  # names that every configuration has
        held_out(str(small_tree))


@pytest.fixture
def small_config(imported, monkeypatch, tmp_path) -> Path:
    """The configuration of the studies with a smaller model, smaller batches and no warm-up, so that each setting
    has an effect within four iterations."""
    study = imported("study")
    region = {"DIM": 32, "MASK_DIM": 16, "HEADS": 4, "FFN_DIM": 48, "DECODER_LAYERS": 2, "NUM_QUERIES": 12}
    backbone = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
    tasks = ("scenes", "scene_phrases", "digits", "scene_captions", "scene_pairs", "corpus")
    captions = {"IMS_PER_BATCH": 4, "CAPTIONS_PER_IMAGE": 1, "MAX_LENGTH": 4}
    settings = {
        "_BASE_": str(study.CONFIG),
        "MODEL": {
            "UNIPERCEIVER_V2": {
                "EMBED_DIM": 32,
                "BACKBONE": {"CONFIG": backbone},
                "DECODER": {"LAYERS": 1, "FFN_DIM": 32},
                "REGION": region,
                "CRITERION": {"NUM_POINTS": 64},
            }
        },
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "TASKS": {**{task: {"IMS_PER_BATCH": 4} for task in tasks}, "scene_captions": captions},
        "SOLVER": {"WARMUP_ITERS": 0, "WEIGHT_AVERAGING": 0.5, "BASE_LR": 0.005},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(study, "CONFIG", path)
    return path


@pytest.fixture
def delivered(imported, monkeypatch) -> dict[str, torch.Tensor]:
    """The weights that the last run of a study tested."""
    study = imported("study").Study
    test, weights = study._test, {}

    def keeping_test(self, trainer, tasks):
        weights.clear()
        weights.update({key: value.clone() for key, value in trainer.model.state_dict().items()})
        return test(self, trainer, tasks)

    monkeypatch.setattr(study, "_test", keeping_test)
    return weights


@pytest.fixture
def replaced(monkeypatch) -> dict[str, int]:
    """The number of calls of each replacement that a study makes, by the name of the replaced object."""
    patch, calls = mock.patch.object, {}

    def counting_patch(place, name, replacement):
        calls[name] = 0

        def counted(*args, **kwargs):
            calls[name] += 1
            return replacement(*args, **kwargs)

        return patch(place, name, counted)

    monkeypatch.setattr(mock.patch, "object", counting_patch)
    return calls
