"""Temperatures: the fit finds them, the program writes them beside the weights, and every way to a score has them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from scipy.special import expit, log_softmax, logit
from scipy.special import softmax as scipy_softmax

from uniperceiver_v2 import Predictor, calibrate
from uniperceiver_v2.calibrate import Judged, fitted, fitted_on_others, judged_detections, main, write_temperatures
from uniperceiver_v2.data import register_digit_scenes
from uniperceiver_v2.data.datasets.records import load_dataset
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.predictor import MODEL_ZOO
from uniperceiver_v2.report.matching import category_curves, matched
from uniperceiver_v2.tasks.labelled_proposals import calibrated

ZOO = REPOSITORY / MODEL_ZOO["digit_scenes/small"]
TRAINED = {"scenes": "tiny_digit_scenes_train", "digits": "tiny_digits_train"}


def made_up_detections(temperature: float, seed: int = 0, count: int = 40_000) -> Judged:
    """Detections that are right as often as their scores say with this temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, count)
    return judged_detections(
        expit(logits), rng.random(count) < expit(logits / temperature), rng.integers(0, 500, count)
    )


def made_up_classes(temperature: float, seed: int = 0, count: int = 20_000) -> Judged:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    true = scipy_softmax(logits / temperature, axis=1).cumsum(1)
    labels = (rng.random((count, 1)) > true).sum(1).clip(max=3)
    return Judged(log_softmax(logits, axis=1), labels, logits.argmax(1), np.arange(count))


@pytest.mark.parametrize("made_up", [made_up_detections, made_up_classes])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_fit_finds_the_temperature(made_up, temperature):
    assert fitted(made_up(temperature)) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("made_up", [made_up_detections, made_up_classes])
def test_scores_that_are_wrong_become_right(made_up):
    judged = made_up(0.3)
    held_out = fitted_on_others(judged)
    assert judged.error(1.0) > 0.08
    assert judged.error(held_out) < 0.015
    assert judged.likelihood(held_out) < judged.likelihood(1.0)
    assert judged.likelihood(0.3) < judged.likelihood(0.25) and judged.likelihood(0.3) < judged.likelihood(0.36)


def test_an_image_is_judged_by_others():
    """The images of one part alone are right where their scores are low."""
    judged = made_up_detections(0.5)
    part = judged.image % calibrate.FOLDS == 2
    judged = replace(judged, labels=np.where(part, 1 - judged.labels, judged.labels))
    held_out = fitted_on_others(judged)
    assert len(set(held_out)) == calibrate.FOLDS
    assert set(held_out[part]) == {fitted(judged[~part])} and fitted(judged[~part]) == pytest.approx(0.5, rel=0.05)


def test_scores_are_the_formula_and_keep_their_order():
    scores = torch.cat((torch.tensor([0.0, 1e-9, 0.5, 1.0]), torch.rand(500))).sort().values
    assert calibrated(scores, 1.0) is scores
    for temperature in (0.3, 4.0):
        found = calibrated(scores, temperature)
        with np.errstate(divide="ignore"):
            expected = expit(logit(scores.double().numpy()) / temperature)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
        assert found.dtype == scores.dtype and found[2:].diff().min() >= 0 and calibrated(torch.tensor(0.5), 3.0) == 0.5


def test_a_temperature_leaves_average_precision():
    rng = np.random.default_rng(0)
    curves = []
    for temperature in (1.0, 0.3):
        rng = np.random.default_rng(0)
        images = []
        for image in range(20):
            boxes = np.concatenate((rng.uniform(0, 60, (8, 2)), rng.uniform(5, 40, (8, 2))), 1)
            own = [{"category_id": 0, "bbox": box.tolist(), "bbox_mode": 1} for box in boxes[:4]]
            scores = calibrated(torch.from_numpy(rng.random(8, np.float32)), temperature).tolist()
            guesses = [{"category_id": 0, "bbox": b, "score": s} for b, s in zip((boxes + 1).tolist(), scores)]
            images.append(matched({"image_id": image, "annotations": own}, guesses, {0: 0}))
        curves.append(category_curves(images, 1)[0])
    assert curves[0].ap == curves[1].ap and 0.3 < curves[0].ap < 0.95
    assert not np.allclose(curves[0].scores, curves[1].scores)


def test_a_model_has_the_temperatures_of_its_settings(tiny_config):
    """By Detectron2's own call, as in --eval-only and in DefaultPredictor."""
    tiny_config.TASKS.scenes.TEMPERATURE, tiny_config.TASKS.digits.TEMPERATURE = 0.5, 3.0
    torch.manual_seed(0)
    model = build_model(tiny_config).eval()
    item = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "candidates": ("one", "two", "three")}
    found = model([item])[0]["instances"]
    classes = model([{**item, "task": "classification"}])[0]["scores"]
    for task in ("scenes", "digits"):
        model.tasks[task].settings = replace(model.tasks[task].settings, temperature=1.0)
    plain = model([item])[0]["instances"]
    np.testing.assert_allclose(found.scores.numpy(), expit(logit(plain.scores.double().numpy()) / 0.5), rtol=1e-5)
    assert torch.equal(found.pred_boxes.tensor, plain.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, plain.pred_classes) and not torch.equal(found.scores, plain.scores)
    likelihoods = model([{**item, "task": "classification"}])[0]["scores"].log()
    torch.testing.assert_close(classes, (likelihoods / 3).softmax(-1))
    assert not torch.allclose(classes, likelihoods.exp())


@pytest.fixture
def scenes_tree(small_tree, catalogs):
    register_digit_scenes(str(small_tree), prefix="tiny_")
    return small_tree


@pytest.fixture
def zoo_copy(tmp_path):
    """The zoo's model, trained on TRAINED, with the temperatures of other weights."""
    directory = tmp_path / "model"
    shutil.copytree(ZOO, directory, ignore=shutil.ignore_patterns("log.txt", "metrics.json"))
    description = json.loads((directory / "config.json").read_text())
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    for tasks in (description["settings"]["TASKS"], settings["TASKS"]):
        for name, dataset in TRAINED.items():
            tasks[name].update({"DATASETS": [dataset], "TEMPERATURE": 7.0})
    (directory / "config.json").write_text(json.dumps(description))
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory


def settings_in(directory) -> list[dict]:
    """Of both files."""
    return [
        json.loads((directory / "config.json").read_text())["settings"],
        yaml.safe_load((directory / "config.yaml").read_text()),
    ]


def test_the_program_writes_what_every_reader_then_has(zoo_copy, scenes_tree, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "FEWEST", 1)
    before = settings_in(zoo_copy)
    assert main([str(zoo_copy), "--images", "24"]) == 0
    said = capsys.readouterr().out
    after = settings_in(zoo_copy)
    temperature = after[0]["TASKS"]["scenes"]["TEMPERATURE"]
    assert 0 < temperature < 0.8 and f"temperature {temperature:g};" in said
    assert "scenes (detection): " in said and "digits (classification): 24 right and 0 wrong" in said
    for old, new in zip(before, after, strict=True):
        for name, value in (("scenes", temperature), ("digits", 1.0)):  # without a wrong class, nothing can be fitted
            assert new["TASKS"][name]["TEMPERATURE"] == value
            old["TASKS"][name]["TEMPERATURE"] = value
        assert old == new

    write_temperatures(zoo_copy, {"scenes": 0.5})
    image = load_dataset(TRAINED["scenes"])[0]["file_name"]
    predictor = Predictor.from_pretrained(zoo_copy)
    found = predictor.detect(image, threshold=0).scores
    task = predictor.task("detection")
    task.settings = replace(task.settings, temperature=1.0)
    plain = predictor.detect(image, threshold=0).scores
    np.testing.assert_allclose(found, expit(logit(plain.astype(float)) / 0.5), rtol=1e-4)

    assert main([str(zoo_copy), "--images", "24"]) == 0  # starts from 1, not from the values that are there
    assert settings_in(zoo_copy) == after


def test_a_run_and_its_checkpoint(tiny_config, tiny_model, scenes_tree, tmp_path, capsys):
    """A model with random weights has nothing right, and stays as it is."""
    for name, dataset in TRAINED.items():
        tiny_config.TASKS[name].DATASETS = [dataset]
        tiny_config.TASKS[name].TEMPERATURE = 0.2
    (tmp_path / "config.yaml").write_text(tiny_config.dump())
    assert main([str(tmp_path)]) == 1
    assert "model_final.pth" in capsys.readouterr().err
    torch.save({"model": tiny_model.state_dict()}, tmp_path / "other.pth")
    assert main([str(tmp_path), "--weights", str(tmp_path / "other.pth"), "--images", "4"]) == 0
    assert capsys.readouterr().out.count("temperature 1, since a fitted one needs at least 10") == 2
    tiny_config.TASKS.scenes.TEMPERATURE = tiny_config.TASKS.digits.TEMPERATURE = 1.0
    assert (tmp_path / "config.yaml").read_text() == tiny_config.dump()


def test_data_that_is_not_there_is_named_and_nothing_changes(zoo_copy, catalogs, tmp_path, capsys):
    register_digit_scenes(str(tmp_path / "nowhere"), prefix="tiny_")
    before = settings_in(zoo_copy)
    assert main([str(zoo_copy)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and TRAINED["scenes"] in said and said.count("\n") == 1
    assert settings_in(zoo_copy) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images", "0"], "at least 1"),
        (["--weights", "x.pth"], "leave out --weights"),
        ([], "neither config.yaml nor"),
    ],
)
def test_mistakes_are_sentences(arguments, reason, tmp_path, capsys):
    assert main([str(ZOO if arguments else tmp_path), *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_a_temperature_that_does_not_help_is_not_kept(tiny_config, capsys):
    task = calibrate.configured_task(tiny_config, "scenes")
    assert calibrate._fit(task, made_up_detections(0.5)) == pytest.approx(0.5, rel=0.05)
    unsure = replace(made_up_detections(0.5), logits=np.zeros((40_000, 2)))  # any temperature leaves a score of 0.5
    assert calibrate._fit(task, unsure) == 1.0
    assert "temperature 1, since the fitted one does not help there" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["scenes", "digits"])
def test_photographs_of_test_sets_are_left_out(task, tiny_config, scenes_tree, monkeypatch):
    records = [{**r, "photos": [f"coco:{i}"]} for i, r in enumerate(load_dataset(TRAINED[task]))]
    train, test = f"{task}_photos_train", f"{task}_photos_test"
    DatasetCatalog.register(train, lambda: records)
    DatasetCatalog.register(test, lambda: records[2:])
    for name in (train, test):
        MetadataCatalog.get(name).set(thing_classes=list("abcdefghij"), evaluator_type="coco")
    tiny_config.DATASETS.TEST = [test]
    tiny_config.TASKS[task].DATASETS = [train]
    seen = []
    monkeypatch.setattr(calibrate, "_predictions", lambda predictor, own, *_: seen.append(own) or iter(()))
    configured = calibrate.configured_task(tiny_config, task)
    with pytest.raises(ValueError):  # of no prediction
        calibrate.JUDGES[configured.kind.name](SimpleNamespace(cfg=tiny_config), configured, 100)
    assert [record["photos"] for record in seen[0]] == [["coco:0"], ["coco:1"]]


KILLED = """
import os, signal, sys
from pathlib import Path
from uniperceiver_v2.calibrate import write_temperatures
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_temperatures(Path(sys.argv[1]), {"scenes": 0.5})
"""


def test_a_kill_leaves_the_old_settings(zoo_copy):
    before = settings_in(zoo_copy)
    done = subprocess.run([sys.executable, "-c", KILLED, str(zoo_copy)], env=os.environ)
    assert done.returncode == -9 and settings_in(zoo_copy) == before
    write_temperatures(zoo_copy, {"scenes": 0.5})
    assert [x["TASKS"]["scenes"]["TEMPERATURE"] for x in settings_in(zoo_copy)] == [0.5, 0.5]
    assert not [path for path in zoo_copy.iterdir() if path.name.startswith(".")]
