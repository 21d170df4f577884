"""The section on own data of datasets/README.md, word for word."""

import importlib
import inspect
import json
import re
import runpy
import shutil
import sys

import pytest
from detectron2.data import MetadataCatalog

from uniperceiver_v2.files import REPOSITORY

README = (REPOSITORY / "datasets/README.md").read_text(encoding="utf-8")
ONE_ITERATION = ["SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "TASKS.boats.IMS_PER_BATCH", "2"]


def block(language: str) -> str:
    """The code block of a language in the section on own data."""
    section = README[README.index("## Your own") :]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL).group(1)


@pytest.fixture
def checkout(tree, tmp_path, monkeypatch, catalogs):
    """A repository's root with the user's script, configuration and images. Three of the images are for testing."""
    (tmp_path / "projects").symlink_to(REPOSITORY / "projects")
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "boats").mkdir()
    (tmp_path / "boats/images").symlink_to(tree / "images/train")
    content = json.loads((tree / "annotations/instances_train.json").read_text())
    for name, images in (("train", content["images"]), ("val", content["images"][:3])):
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        part = {**content, "images": images, "annotations": annotations}
        (tmp_path / f"boats/{name}.json").write_text(json.dumps(part))
    (tmp_path / "train_boats.py").write_text(block("python"))
    (tmp_path / "configs/boats.yaml").write_text(block("yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def test_the_documented_script_trains_and_evaluates(checkout, monkeypatch, capsys):
    python, *command = block("sh").split()
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [*command, *ONE_ITERATION])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[0], run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err
    results = json.loads((checkout / "output/boats/results.json").read_text())
    assert {"bbox", "segm"} <= set(results["boats_val"]) and "AP" in results["boats_val"]["bbox"]
    assert (checkout / "output/boats/model_final.pth").is_file()
    assert MetadataCatalog.get("boats_val").thing_classes[:2] == ["zero", "one"]


def test_the_documented_script_tells_a_mistake_as_train_net_does(checkout, monkeypatch, capsys):
    _, *command = block("sh").split()
    monkeypatch.setattr(sys, "argv", [*command, "DATASETS.TEST", "('boat_val',)"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[0], run_name="__main__")
    assert ended.value.code == 1 and "did you mean 'boats_val'?" in capsys.readouterr().err


def test_what_the_documentation_registers_exists():
    """The functions in the table exist and have the arguments in the table."""
    section = README[README.index("## Your own") :]
    calls = re.findall(r"`((?:detectron2|uniperceiver_v2)[\w.]*)\.(\w+)\(([^`]*)\)`", section)
    assert len(calls) == 12
    for module, function, arguments in calls:
        signature = inspect.signature(getattr(importlib.import_module(module), function))
        given = arguments.split(", ")
        signature.bind(*(x for x in given if "=" not in x), **dict(x.split("=") for x in given if "=" in x))
