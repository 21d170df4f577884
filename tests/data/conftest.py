"""A tiny digit_scenes tree, registered as tiny_*, and configurations of tasks on it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from transformers import PreTrainedTokenizerBase

from uniperceiver_v2 import add_uniperceiver_v2_config
from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer


@pytest.fixture(scope="session")
def tree(prepare_digit_scenes, tmp_path_factory) -> Path:
    """40 training and 12 test scenes."""
    output = tmp_path_factory.mktemp("tiny") / "digit_scenes"
    prepare_digit_scenes(output, train_scenes=40, test_scenes=12)
    return output


@pytest.fixture
def tiny(tree, catalogs) -> Path:
    register_digit_scenes(str(tree), prefix="tiny_")
    return tree


@pytest.fixture
def config() -> Callable[..., CfgNode]:
    """{task: settings} -> a configuration for images of 96 pixels, without workers."""

    def build(**tasks: dict) -> CfgNode:
        cfg = get_cfg()
        add_uniperceiver_v2_config(cfg)
        cfg.SEED = 5
        cfg.MODEL.MASK_ON = True
        cfg.INPUT.FORMAT = "RGB"
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (80, 96, 112), 96
        cfg.INPUT.RANDOM_FLIP = "none"
        cfg.MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH = "configs/digit_scenes/text_encoder"
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.TEST.IMS_PER_BATCH = 6
        cfg.TASKS.NAMES = list(tasks)
        for name, settings in tasks.items():
            cfg.TASKS[name] = CfgNode({**task_defaults(name, settings["KIND"]), **settings})
        return cfg

    return build


SCENES = {"KIND": "detection", "DATASETS": ["tiny_digit_scenes_train"], "IMS_PER_BATCH": 6}
DIGITS = {
    "KIND": "classification",
    "DATASETS": ["tiny_digits_train"],
    "IMS_PER_BATCH": 8,
    "IMAGE_SIZE": 32,
    "CROP_SCALE": [0.5, 1.0],
    "FLIP": False,
}
CAPTIONS = {"KIND": "captioning", "DATASETS": ["tiny_digit_scenes_captions_train"], "IMS_PER_BATCH": 4}
RETRIEVAL = {"KIND": "retrieval", "DATASETS": ["tiny_digit_scenes_captions_train"], "IMS_PER_BATCH": 6}
TEXTS = {"KIND": "language_modelling", "DATASETS": ["tiny_digit_corpus_train"], "IMS_PER_BATCH": 8}


@pytest.fixture
def scenes_config(tiny, config) -> CfgNode:
    return config(scenes=SCENES, digits=DIGITS)


@pytest.fixture
def all_tasks_config(tiny, config) -> CfgNode:
    """A configuration with a task of each kind."""
    return config(scenes=SCENES, digits=DIGITS, captions=CAPTIONS, retrieval=RETRIEVAL, texts=TEXTS)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of digit_scenes, for texts of up to 64 tokens."""
    return load_tokenizer(REPOSITORY / "configs/digit_scenes/text_encoder")


@pytest.fixture
def logged(caplog):
    """() -> the messages that this package has logged so far in the test."""
    logger = logging.getLogger("uniperceiver_v2")
    propagated, logger.propagate = logger.propagate, True
    caplog.set_level(logging.INFO, logger="uniperceiver_v2")
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.propagate = propagated
