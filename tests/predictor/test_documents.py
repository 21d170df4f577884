"""The snippets of the documents run, with a model of random weights in the place of a trained one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def snippets(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [code for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if code]


@pytest.fixture
def after_training(predictor, pixels, tmp_path, monkeypatch):
    """A folder like the repository's after `make train`."""
    from PIL import Image

    run, images = tmp_path / "output" / "digit_scenes_tiny", tmp_path / "datasets" / "digit_scenes" / "images" / "test"
    run.mkdir(parents=True)
    images.mkdir(parents=True)
    predictor.cfg.TASKS.scenes.DATASETS, predictor.cfg.TASKS.digits.DATASETS = ["digit_scenes_train"], ["digits_train"]
    (run / "config.yaml").write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict()}, run / "model_final.pth")
    for number in (1, 2, 3):
        Image.fromarray(pixels(seed=number)).save(images / f"00000100000{number}.png")
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(("document", "count"), [("README.md", 1), ("docs/predictor.md", 5)])
def test_snippets_run(after_training, document, count, capsys):
    found = snippets(document)
    assert len(found) == count
    names: dict = {}
    for code in found:
        exec(code, names)
    assert (after_training / "found.png").is_file()
    assert (after_training / "pretrained" / "model.safetensors").is_file()
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_readmes_snippet_is_ten_lines():
    (code,) = snippets("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_snippet_on_a_checkpoint_runs(after_training, capsys):
    from detectron2.modeling import build_model

    from uniperceiver_v2.config import load_config

    (code,) = snippets("projects/uniperceiver_v2/README.md")
    torch.manual_seed(0)
    model = build_model(load_config("configs/digit_scenes/uniperceiver_v2_tiny.yaml", training=False, datasets=False))
    torch.save({"model": model.state_dict()}, after_training / "model_final.pth")
    assert code.count("0.3") == 1
    names: dict = {}
    exec(code.replace("0.3", "0"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * names["cfg"].MODEL.UNIPERCEIVER_V2.REGION.NUM_QUERIES
    assert {line.split()[0] for line in printed} == {"seven", "two"}


def test_the_snippets_of_the_zoo_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in snippets("projects/uniperceiver_v2/MODEL_ZOO.md"):
        exec(code, names)
    assert names["cfg"].MODEL.META_ARCHITECTURE == "UniPerceiverV2"
    assert "seven" in names["predictor"].labels()
    assert names["model"].tasks["scenes"].labels == names["predictor"].labels()


def test_the_comparison_of_two_runs_sees_what_differs(tmp_path, monkeypatch, capsys):
    """CONTRIBUTING.md's program, which a shell gives to Python."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^python - .*?<<'PYTHON'\n(.*?)^PYTHON$", text, re.MULTILINE | re.DOTALL)
    rows = {"same": {"loss": 1.0, "time": 1.0}, "other": {"loss": 2.0, "time": 1.0}}
    for name, weight, row in (("a", 1.0, "same"), ("b", 1.0, "same"), ("c", 2.0, "same"), ("d", 1.0, "other")):
        (tmp_path / name).mkdir()
        torch.save({"model": {"x": torch.tensor([weight])}}, tmp_path / name / "model_final.pth")
        (tmp_path / name / "metrics.json").write_text(json.dumps({**rows[row], "time": weight}) + "\n")

    def compare(one: str, other: str) -> None:
        monkeypatch.setattr(sys, "argv", ["-", str(tmp_path / one), str(tmp_path / other)])
        exec(code, {"__name__": "__main__"})

    compare("a", "b")
    assert capsys.readouterr().out == "the same: 1 weights, 1 rows of metrics\n"
    for other, difference in (("c", "weights differ"), ("d", "metrics differ")):
        with pytest.raises((AssertionError, SystemExit), match=difference):
            compare("a", other)


def test_the_listing_of_a_scalar(tmp_path):
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```sh\npython -c '(.*?)'\n```", text, re.MULTILINE | re.DOTALL)
    rows = [{"iteration": 19, "scenes/loss_category": 2.5}, {"iteration": 39}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert command.count("OUTPUT_DIR") == 1
    code = command.replace("OUTPUT_DIR", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "19 2.5\n"
