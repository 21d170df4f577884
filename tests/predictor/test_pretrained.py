"""Directories in Hugging Face's form: whole without a network, without the datasets, and without the old paths."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from uniperceiver_v2 import Predictor
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.predictor import pretrained


@pytest.fixture
def directory(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "a model")
    return tmp_path / "a model"


def test_a_directory_gives_the_same_answers(predictor, directory, files):
    loaded = Predictor.from_pretrained(directory)
    assert loaded.labels() == predictor.labels() == loaded.labels("classification")
    for ours, theirs in zip(loaded.detect(files, threshold=0), predictor.detect(files, threshold=0), strict=True):
        assert torch.equal(torch.tensor(ours.scores), torch.tensor(theirs.scores))
    assert [str(x) for x in loaded.caption(files)] == [str(x) for x in predictor.caption(files)]
    assert str(loaded.complete("a <mask>")) == str(predictor.complete("a <mask>"))
    loaded.save_pretrained(directory.parent / "copy")
    state, copied = (load_file(folder / "model.safetensors") for folder in (directory, directory.parent / "copy"))
    assert state.keys() == copied.keys() == predictor.model.state_dict().keys()
    assert all(torch.equal(state[key], copied[key]) for key in state)


def test_files_of_a_directory(predictor, directory):
    assert sorted(path.name for path in directory.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "text_encoder",
    ]
    content = json.loads((directory / "config.json").read_text())
    assert content["settings"]["INPUT"] == yaml.safe_load(predictor.cfg.INPUT.dump())
    assert content["labels"]["detection"] == list(predictor.labels())
    _, header, card = (directory / "README.md").read_text().split("---", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert "detection, classification, captioning" in card and "a red seven" in card
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(directory, subfolder="text_encoder")) == 509


def test_a_directory_needs_neither_the_repository_nor_a_network_nor_datasets(predictor, files, tmp_path):
    """In another process and folder, with a dataset that nobody registers and sockets that fail."""
    predictor.cfg.DATASETS.TEST = ("boats_test",)
    predictor.cfg.TASKS.scenes.DATASETS = ["boats_train"]
    predictor.save_pretrained(tmp_path / "boats")
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise OSError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from uniperceiver_v2 import Predictor\n"
        "print(Predictor.from_pretrained(sys.argv[1]).detect(sys.argv[2], threshold=0))"
    )
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    arguments = [sys.executable, "-c", program, str(tmp_path / "boats"), files[0]]
    found = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(predictor.detect(files[0], threshold=0))


def test_a_backbone_of_a_directory_is_carried_along(tiny_config, tmp_path, files):
    from detectron2.modeling import build_model
    from transformers import AutoConfig

    fields = dict(tiny_config.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG)
    AutoConfig.for_model(fields.pop("model_type"), **fields).save_pretrained(tmp_path / "resnet")
    tiny_config.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG.clear()
    tiny_config.MODEL.UNIPERCEIVER_V2.BACKBONE.PATH = str(tmp_path / "resnet")
    predictor = Predictor.from_model(build_model(tiny_config), tiny_config)
    predictor.save_pretrained(tmp_path / "model")
    (tmp_path / "resnet" / "config.json").unlink()
    loaded = Predictor.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.embed_images(files), predictor.embed_images(files))


def test_checkpoints_of_a_run_are_loaded(predictor, files, tmp_path):
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    loaded = Predictor(tmp_path / "config.yaml", tmp_path / "model_final.pth", device="cpu")
    assert str(loaded.detect(files[0], ["a"], threshold=0)) == str(predictor.detect(files[0], ["a"], threshold=0))
    predictor.save_pretrained(tmp_path / "hf")
    again = Predictor(tmp_path / "config.yaml", tmp_path / "hf" / "model.safetensors")
    torch.testing.assert_close(again.embed_images(files), predictor.embed_images(files))
    with pytest.raises(UserError, match="needs weights"):
        Predictor(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="checkpoint not found"):
        Predictor(tmp_path / "config.yaml", tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="checkpoint not found"):
        Predictor(tmp_path / "config.yaml", tmp_path / "nothing.safetensors")


def damage_weights(directory):
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:1000])


def other_width(directory):
    content = json.loads((directory / "config.json").read_text())
    content["settings"]["MODEL"]["UNIPERCEIVER_V2"]["ATTENTION_POOLS"] = 5
    (directory / "config.json").write_text(json.dumps(content))


def misspelled_setting(directory):
    content = json.loads((directory / "config.json").read_text())
    content["settings"]["MODLE"] = {}
    (directory / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_weights, r"model\.safetensors cannot be read as safetensors"),
        (lambda d: (d / "model.safetensors").unlink(), r"checkpoint not found: .*model\.safetensors"),
        (other_width, r"model\.safetensors: the weights are of another architecture"),
        (misspelled_setting, "unknown configuration key 'MODLE'"),
        (lambda d: (d / "config.json").unlink(), r"a model is no directory of a model: it has no config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda d: (d / "config.json").write_text('{"model_type": "bert"}'), "does not describe a model"),
        (lambda d: (d / "text_encoder" / "tokenizer.json").unlink(), "no tokenizer can be loaded"),
    ],
)
def test_a_damaged_directory_is_told(directory, harm, message):
    harm(directory)
    with pytest.raises(UserError, match=message):
        Predictor.from_pretrained(directory)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("settings MODEL", None, "configuration key 'MODEL' .* expects a section"),
        ("settings MODEL", [1], "configuration key 'MODEL' .* expects a section"),
        ("settings MODEL UNIPERCEIVER_V2", [1], "'MODEL.UNIPERCEIVER_V2' .* expects a section"),
        ("settings MODEL UNIPERCEIVER_V2 BACKBONE", "x", "'MODEL.UNIPERCEIVER_V2.BACKBONE' .* expects a section"),
        ("settings SOLVER BASE_LR", "x", "'SOLVER.BASE_LR' .* expects float"),
        ("labels detection", 5, "labels of 'detection' are a list of texts, not 5"),
        ("labels detection", "abc", "labels of 'detection' are a list of texts, not 'abc'"),
        ("labels detection", [], "labels of 'detection' are a list of texts"),
        ("labels detection", ["a", None], "labels of 'detection' have to be texts with at least one letter, not None"),
        ("labels detection", ["\ud800"], "labels of 'detection' have to be texts of whole characters"),
        ("labels detection", ["a" * 100_000], "labels of 'detection' have to be texts of at most 65536 characters"),
        ("category_ids", 5, "category_ids are a list of 3 ids, one of each label, not 5"),
        ("category_ids", [1, 2], "category_ids are a list of 3 ids"),
        ("category_ids", [1, 2, 0.5], "category_ids are a list of 3 ids"),
        ("padding", "a" * 2**22, "bytes, more than 4194304"),
    ],
)
def test_a_wrong_description_is_told_with_its_file_and_entry(directory, path, value, message):
    file = directory / "config.json"
    content = json.loads(file.read_text())
    *above, last = path.split()
    functools.reduce(dict.__getitem__, above, content)[last] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        Predictor.from_pretrained(directory)
    assert str(caught.value).startswith(str(file))


def test_classes_of_one_name_and_ids_come_back(predictor, directory):
    file = directory / "config.json"
    content = json.loads(file.read_text())
    content["labels"]["detection"], content["category_ids"] = ["crane", "crane"], [134, "crane"]
    file.write_text(json.dumps(content))
    assert Predictor.from_pretrained(directory).labels() == ("crane", "crane")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere", "somebody/nothing-of-this-name"])
def test_a_missing_directory_is_told(name):
    with pytest.raises(UserError, match=name):
        Predictor.from_pretrained(name)


def test_the_zoo_says_what_it_has(directory, monkeypatch, files):
    monkeypatch.setattr(pretrained, "MODEL_ZOO", {})
    with pytest.raises(UserError, match="no model 'digit_scenes/tiny' in the zoo; the zoo has no models yet"):
        Predictor.from_zoo("digit_scenes/tiny")
    monkeypatch.setattr(pretrained, "MODEL_ZOO", {"digit_scenes/tiny": str(directory), "other": "x"})
    assert Predictor.from_zoo("digit_scenes/tiny").detect(files[0], threshold=0)
    with pytest.raises(UserError, match=r"did you mean 'digit_scenes/tiny'\? \(the zoo has digit_scenes/tiny, other\)"):
        Predictor.from_zoo("digit_scenes/tyni")
    with pytest.raises(UserError, match="valid: digit_scenes/tiny, other"):
        Predictor.from_zoo("xyz")


def test_a_directory_that_cannot_be_written_is_told(predictor, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "text_encoder").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        predictor.save_pretrained(tmp_path / "model")
