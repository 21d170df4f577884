"""The worked example of docs/adding_a_task.md, word for word: the task "counting" is trained and evaluated."""

import json
import re
import runpy
import sys

import pytest
from detectron2.data import DatasetCatalog

from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.kinds import KINDS

DOCUMENT = (REPOSITORY / "docs/adding_a_task.md").read_text(encoding="utf-8")
SHORT = [
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.WARMUP_ITERS",
    "0",
    "TASKS.NAMES",
    "['counts']",
    "TASKS.counts.IMS_PER_BATCH",
    "2",
]


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL).group(1)


@pytest.fixture
def registries():
    """Restores the registries that the example adds to."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def test_counting_is_trained_and_evaluated(tiny, registries, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects").symlink_to(REPOSITORY / "projects")
    (tmp_path / "configs").mkdir()
    for path in (REPOSITORY / "configs").iterdir():
        (tmp_path / "configs" / path.name).symlink_to(path)
    (tmp_path / "configs/count_digits.yaml").write_text(block("yaml"))
    (tmp_path / "count_digits.py").write_text(block("python"))
    python, *command = block("sh").split()
    assert python == "python"
    for split in ("train", "test"):
        monkeypatch.setitem(DatasetCatalog.data, f"digit_scenes_{split}", DatasetCatalog[f"tiny_digit_scenes_{split}"])
    monkeypatch.setattr(sys, "argv", [*command, *SHORT, "DATASETS.TEST", "('digit_counts_test',)"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[0], run_name="__main__")
    output = capsys.readouterr()
    assert ended.value.code == 0, output.err
    assert re.search(r"\|\s+exact \|\s+mean distance \|", output.out)
    results = json.loads((tmp_path / "output/count_digits/results.json").read_text())
    counting = results["digit_counts_test"]["counting"]
    assert counting["exact"] in [pytest.approx(100 * right / 6) for right in range(7)]
    assert 0 <= counting["mean distance"] <= 5
    losses = [json.loads(line) for line in (tmp_path / "output/count_digits/metrics.json").read_text().splitlines()]
    assert any("counts/loss_count" in line for line in losses)
