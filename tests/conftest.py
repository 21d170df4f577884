"""Set-up of every test: no network, one thread, the same random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import gzip
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from detectron2.config import CfgNode

torch.set_num_threads(1)

# The machine may be busy: how long an example takes says nothing about it. Each run has the same examples.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What imports have made stays to the end. The collector would go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Seeds every test, so that its outcome does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers():
    """Takes away what a test's programs have set up for the log of their process: a handler that outlives its test
    writes to a stream that is closed by then, and Python reports that on the stderr of another test."""
    yield
    if module := sys.modules.get("detectron2.utils.logger"):
        module.setup_logger.cache_clear()  # it would do nothing for a later program with the same settings
    for name in ("detectron2", "fvcore", "uniperceiver_v2"):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def prepare_digit_scenes() -> Callable[[Path, int, int], None]:
    """``prepare`` of datasets/prepare_digit_scenes.py, with a small corpus: (folder, train_scenes, test_scenes).

    A tree of any number of scenes has 7,500 sentences, which a run reads at its start and its evaluation to the end.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
    try:
        from prepare_digit_scenes import prepare
    finally:
        sys.path.pop(0)

    def prepare_small(output: Path, train_scenes: int, test_scenes: int) -> None:
        prepare(output, train_scenes=train_scenes, test_scenes=test_scenes)
        for split, count in (("train", 400), ("test", 60)):
            corpus = output / "corpus" / f"{split}.txt"
            corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:count]))

    return prepare_small


@pytest.fixture(scope="session")
def small_tree(prepare_digit_scenes, tmp_path_factory) -> Path:
    """digit_scenes of 24 training and 6 test scenes."""
    output = tmp_path_factory.mktemp("small") / "digit_scenes"
    prepare_digit_scenes(output, train_scenes=24, test_scenes=6)
    return output


@pytest.fixture
def few_paraphrases(monkeypatch, tmp_path) -> None:
    """METEOR's five million paraphrases take longer to read than most tests run."""
    from uniperceiver_v2.evaluation import meteor

    with gzip.open(tmp_path / "paraphrases.gz", "wb") as file:
        file.write(b"0.5\na pair\ntwo\n")
    monkeypatch.setattr(meteor, "_PARAPHRASES", str(tmp_path / "paraphrases.gz"))


@pytest.fixture
def catalogs():
    """Removes a test's registrations afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog.list()) - names:
            catalog.remove(name)


@pytest.fixture
def tiny_config():
    """Settings of the smallest whole model, with a task of each kind: a forward pass takes some 50 ms. Images are made
    64 pixels high, or the square 32."""
    return _tiny_config()


@pytest.fixture(scope="session")
def make_tiny_config() -> Callable[[], "CfgNode"]:
    """For fixtures of a whole session: a function that makes ``tiny_config``."""
    return _tiny_config


def _tiny_config() -> "CfgNode":
    from detectron2.config import CfgNode, get_cfg

    from uniperceiver_v2.config import add_uniperceiver_v2_config, task_defaults

    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "UniPerceiverV2"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_huggingface_backbone"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    node = cfg.MODEL.UNIPERCEIVER_V2
    node.EMBED_DIM = 32
    node.ATTENTION_POOLS = 2
    node.BACKBONE.CONFIG = CfgNode(
        {
            "model_type": "resnet",
            "layer_type": "basic",
            "embedding_size": 8,
            "hidden_sizes": [8, 12, 16, 24],
            "depths": [1, 1, 1, 1],
        }
    )
    node.BACKBONE.NORM = "GN"
    node.TEXT_ENCODER.PATH = "configs/digit_scenes/text_encoder"
    node.DECODER.update({"LAYERS": 1, "HEADS": 4, "FFN_DIM": 32, "EXPERTS": 3, "ACTIVE_EXPERTS": 2})
    node.REGION.update({"DIM": 32, "MASK_DIM": 16, "HEADS": 4, "POINTS": 2, "FFN_DIM": 48, "ENCODER_LAYERS": 1})
    node.REGION.update({"DECODER_LAYERS": 2, "NUM_QUERIES": 12, "ANCHOR_SIZE": 0.2, "DENOISING_QUERIES": 4})
    node.REGION.FINE_DIM = 8
    node.CRITERION.NUM_POINTS = 64
    for name, kind in (
        ("scenes", "detection"),
        ("digits", "classification"),
        ("captions", "captioning"),
        ("pairs", "retrieval"),
        ("corpus", "language_modelling"),
        ("phrases", "grounding"),
    ):
        cfg.TASKS.NAMES.append(name)
        cfg.TASKS[name] = CfgNode(task_defaults(name, kind))
    cfg.TASKS.digits.IMAGE_SIZE = 32
    cfg.TASKS.scenes.CENTRE_WEIGHT = cfg.TASKS.phrases.CENTRE_WEIGHT = 2.0
    return cfg


@pytest.fixture
def tiny_model(tiny_config):
    """The smallest whole model, in evaluation mode, with random weights."""
    from detectron2.modeling import build_model

    import uniperceiver_v2  # noqa: F401  (fills the registries)

    return build_model(tiny_config).eval()
