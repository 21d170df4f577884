"""Every registered dataset without its files: one message with the path, from whatever opens it."""

import os
import re

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin as detectron2s

from uniperceiver_v2.data import build_test_loader, load_dataset
from uniperceiver_v2.data.datasets import builtin
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.files import REPOSITORY


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """All built-in datasets, registered anew under a folder that is not there."""
    before = {name: MetadataCatalog.get(name).get("evaluator_type") for name in builtin_names()}
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    root = str(tmp_path / "nowhere")
    for register in (getattr(detectron2s, name) for name in dir(detectron2s) if name.startswith("register_all_")):
        register(root)
    builtin.register_all(root)
    after = {name: MetadataCatalog.get(name).get("evaluator_type") for name in DatasetCatalog.list()}
    assert before.keys() <= after.keys() and {name: after[name] for name in before} == before
    return root


@pytest.fixture
def ours(nowhere) -> set[str]:
    """The datasets that this project registers, and those of Detectron2 that it prepares."""
    with pytest.MonkeyPatch.context() as patch:
        for catalog in (DatasetCatalog, MetadataCatalog):
            patch.setattr(catalog, "data", {})
        builtin.register_all(nowhere)
        return {*DatasetCatalog.list(), "coco_2017_train", "coco_2017_val", "lvis_v1_train", "lvis_v1_val"}


def builtin_names() -> list[str]:
    """Of all names, those whose files are looked for in the folder of all datasets."""
    root = builtin.datasets_root()

    def is_below(name: str) -> bool:
        metadata = MetadataCatalog.get(name).as_dict()
        paths = [metadata.get(key) for key in ("json_file", "source", "image_root", "dirname", "image_dir")]
        return any(isinstance(path, str) and path.startswith(root + os.sep) for path in paths)

    return [name for name in DatasetCatalog.list() if is_below(name)]


def message_of(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_every_reader_says_which_path_is_missing_and_what_makes_it(nowhere, ours, tiny_config):
    for task in tiny_config.TASKS.NAMES:
        tiny_config.TASKS[task].DATASETS = ["digit_scenes_train"]
    names = DatasetCatalog.list()
    assert {"coco_2017_val", "lvis_v1_val", "imagenet_val", "cc3m_train", "digit_corpus_test"} <= set(names)
    for name in names:
        loaded = message_of(load_dataset, name)
        assert f"'{name}'" in loaded and nowhere in loaded, loaded
        assert "datasets/README.md" in loaded or "prepare_digit_scenes.py --output" in loaded, loaded
        if name in ours:
            (program,) = re.findall(r"prepare it with: python (\S+\.py)", loaded)
            assert (REPOSITORY / program).is_file(), program
        tested = message_of(build_test_loader, tiny_config, name)
        unfit = "cannot be evaluated" in tested or "TASKS.question_answering.DATASETS is empty" in tested
        assert f"'{name}'" in tested and (nowhere in tested or unfit), tested


def test_every_evaluator_says_so_as_well(nowhere, tiny_config, tmp_path):
    evaluated = 0
    for name in DatasetCatalog.list():
        message = message_of(build_evaluator, tiny_config, name, str(tmp_path / "out"))
        if "cannot be evaluated" in message:
            continue
        evaluated += 1
        assert f"'{name}' is missing" in message and nowhere in message, message
    assert evaluated > 30


@pytest.mark.parametrize("name", ["coco_2017_val", "lvis_v1_val"])
def test_an_evaluation_ends_with_it_before_the_model_runs(nowhere, tiny_config, name):
    tiny_config.DATASETS.TEST = (name,)
    message = message_of(UniPerceiverTrainer.test, CfgNode(tiny_config), None)
    assert nowhere in message and "datasets/README.md" in message
