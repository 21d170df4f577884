"""docs/own_data.md word by word, with fewer iterations and a smaller model, and its tables against the code."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

import train_net
from uniperceiver_v2 import Predictor
from uniperceiver_v2.config import add_uniperceiver_v2_config, load_config
from uniperceiver_v2.data.datasets.custom import FORMATS, SHARED
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG
from uniperceiver_v2.new import program
from uniperceiver_v2.report import write_report

DOCUMENT = (REPOSITORY / "docs/own_data.md").read_text(encoding="utf-8")
# The tutorial's run has 400 iterations and the tiny model.
SMALL = {
    "SOLVER.MAX_ITER": "4",
    "SOLVER.WARMUP_ITERS": "0",
    "SOLVER.STEPS": "(3,)",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "2",
    "VIS_PERIOD": "0",
    "TASKS.objects.IMS_PER_BATCH": "2",
    "MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG.hidden_sizes": "[8, 12, 16, 24]",
    "MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG.embedding_size": "8",
    "MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG.depths": "[1, 1, 1, 1]",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("catalogs")
def test_the_tutorial_from_pictures_to_an_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shapes, ask = blocks("python")
    Path("make_shapes.py").write_text(make_shapes)
    Path("ask.py").write_text(ask)
    commands = [shlex.split(block) for block in blocks("sh")]
    assert [command[:3] for command in commands] == [
        ["source", ".venv/bin/activate"],
        ["python", "make_shapes.py"],
        ["python", "-m", "uniperceiver_v2.new"],
        ["python", "projects/uniperceiver_v2/train_net.py", "--config-file"],
        ["python", "ask.py"],
        ["python", "-m", "uniperceiver_v2.new"],
    ]
    _, made, begun, trained, asked, tuned = commands
    runpy.run_path(made[1], run_name="__main__")

    assert program.main(begun[3:]) == 0
    (shown,) = blocks("text")
    assert shown in capsys.readouterr().out

    small = [part for pair in SMALL.items() for part in pair]
    monkeypatch.setattr(sys, "argv", [*trained[1:], *small])
    assert train_net.run() == 0, capsys.readouterr().err
    results = json.loads(Path("output/shapes/results.json").read_text())["shapes_objects_test"]
    assert set(results) == {"bbox"}
    detections = Path("output/shapes/inference/shapes_objects_test/coco_instances_results.json").read_text()
    assert {d["category_id"] for d in json.loads(detections)} <= {10, 25} and len(json.loads(detections)) > 0
    assert torch.load("output/shapes/model_best.pth", weights_only=True)["iteration"] in (1, 4)

    predictor = runpy.run_path(asked[1], run_name="__main__")["predictor"]
    assert Path("new.png").is_file() and Path("answer.png").is_file()
    found = predictor.detect("new.png", threshold=0)  # so few iterations may leave none above 0.3
    assert len(found) > 0 and {box.label for box in found} <= {"circle", "square"}
    predictor.save_pretrained("saved")
    again = Predictor.from_pretrained("saved").detect("new.png", threshold=0)
    id_of = {"circle": 10, "square": 25}
    for answer in (found, again):
        assert [row["category_id"] for row in answer.to_coco()] == [id_of[box.label] for box in answer]
    assert "shapes.json" not in Path("saved/config.json").read_text()  # a path of this machine

    DatasetCatalog.remove("shapes_objects_test")  # as in another process
    MetadataCatalog.remove("shapes_objects_test")
    write_report(["output/shapes"], "page.html")
    for page in (Path("page.html").read_text(), Path("output/shapes/report.html").read_text()):
        assert "Worst and best images" in page and "cannot be read" not in page and ">circle<" in page

    assert program.main(tuned[3:]) == 0
    assert load_config("tuned.yaml").MODEL.WEIGHTS.endswith("digit_scenes_small/model.safetensors")


@pytest.mark.usefixtures("catalogs")
def test_the_example_is_a_configuration(tmp_path):
    (example,) = blocks("yaml")
    (tmp_path / "boats.yaml").write_text(f"_BASE_: {TINY_CONFIG}\n{example}")
    cfg = load_config(str(tmp_path / "boats.yaml"))
    assert cfg.TASKS.NAMES == ["boats"] and list(cfg.DATASETS.TEST) == ["boats_test"]
    assert MetadataCatalog.get("boats_train").own_format == "coco"


def test_the_tables_are_those_of_the_code():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", DOCUMENT, re.MULTILINE))
    assert rows.pop("FORMAT")  # the table's head
    documented = {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows.items()}
    assert documented == {name: set(its.keys) - set(SHARED) for name, its in FORMATS.items()}
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    settings = re.findall(r"^\| `((?:TEST|SOLVER)\.\w+)` \| (.+?) \|", DOCUMENT, re.MULTILINE)
    assert len(settings) == 5
    for key, default in settings:
        section, name = key.split(".")
        assert repr(cfg[section][name]).replace("'", '"') == default.strip("`"), key
