"""The zoo's model finds digits of handwriting, and its directory holds what its card says."""

import json

import pytest
import torch
import yaml
from detectron2.structures import Boxes, pairwise_iou

from uniperceiver_v2 import Predictor
from uniperceiver_v2.data import load_dataset, register_digit_scenes
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.predictor import MODEL_ZOO

LARGEST = 16 * 2**20  # bytes of weights


@pytest.mark.parametrize("name", MODEL_ZOO)
def test_a_directory_of_the_zoo_is_complete(name):
    folder = REPOSITORY / MODEL_ZOO[name]
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    assert "apache-2.0" in (folder / "README.md").read_text().lower()
    results = json.loads((folder / "results.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"box / mask AP {results['digit_scenes_test']['bbox']['AP']:.1f}" in card
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] > 6000 and (folder / "log.txt").exists() and (folder / "config.yaml").exists()


def test_the_zoos_scores_are_calibrated_in_both_files():
    """`config.json` is what a predictor reads, `config.yaml` what train_net reads."""
    folder = REPOSITORY / MODEL_ZOO["digit_scenes/small"]
    of_predictor = json.loads((folder / "config.json").read_text())["settings"]["TASKS"]
    of_run = yaml.safe_load((folder / "config.yaml").read_text())["TASKS"]
    predictor = Predictor.from_zoo("digit_scenes/small")
    table = (REPOSITORY / "projects/uniperceiver_v2/MODEL_ZOO.md").read_text()
    for task, kind in (("scenes", "detection"), ("digits", "classification")):
        temperature = of_run[task]["TEMPERATURE"]
        assert temperature == of_predictor[task]["TEMPERATURE"] == predictor.task(kind).settings.temperature
        assert f"| {temperature:g} |" in table
    assert of_run["scenes"]["TEMPERATURE"] < 1  # objectness is taught the quality of boxes, so it is too low


def test_the_small_model_finds_and_names_digits(prepare_digit_scenes, catalogs, tmp_path):
    prepare_digit_scenes(tmp_path / "digit_scenes", train_scenes=1, test_scenes=8)
    register_digit_scenes(str(tmp_path / "digit_scenes"), prefix="tiny_")
    predictor = Predictor.from_zoo("digit_scenes/small")
    records = [r for r in load_dataset("tiny_digit_scenes_test") if r["annotations"]]
    found, objects = 0, 0
    for record, detections in zip(records, predictor.detect([r["file_name"] for r in records]), strict=True):
        instances = detections.instances
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            x, y, w, h = annotation["bbox"]
            overlaps = pairwise_iou(Boxes(torch.tensor([[x, y, x + w, y + h]])), instances.pred_boxes)[0]
            objects += 1
            found += bool(((overlaps > 0.5) & (instances.pred_classes == annotation["category_id"])).any())
    assert objects >= 10 and found >= 0.8 * objects, (found, objects)
