"""The snippets of README.md and docs/predictor.md run, with a model of random weights in the place of a trained one."""

import re
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
    predictor.cfg.TASKS.digits.IMAGE_SIZE = 32
    (run / "config.yaml").write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict()}, run / "model_final.pth")
    for number in (1, 2):
        Image.fromarray(pixels(seed=number)).save(images / f"00000100000{number}.png")
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(("document", "count"), [("README.md", 1), ("docs/predictor.md", 4)])
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
