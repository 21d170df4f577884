"""The program, from its arguments to its files and exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import train_net
from uniperceiver_v2.errors import UserError

CONFIG = """
MODEL: {META_ARCHITECTURE: ToyTwoTasks, DEVICE: cpu}
TASKS:
  NAMES: [lines, signs]
  lines: {KIND: detection, DATASETS: [toy_lines_test]}
  signs: {KIND: classification, DATASETS: [toy_lines_test]}
DATASETS: {TEST: [toy_lines_test]}
SOLVER: {MAX_ITER: 30, WARMUP_ITERS: 5, LR_SCHEDULER_NAME: WarmupCosineLR, WEIGHT_AVERAGING: 0.9}
SEED: 1
"""


@pytest.fixture
def run(tmp_path, monkeypatch, toy_trainer, capsys):
    """Runs the program with arguments. Returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(train_net, "UniPerceiverTrainer", toy_trainer)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    DatasetCatalog.register("toy_lines_test", lambda: [{}])
    MetadataCatalog.get("toy_lines_test").evaluator_type = "toy"

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "run.yaml", *arguments])
        code = train_net.run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    DatasetCatalog.remove("toy_lines_test")
    MetadataCatalog.remove("toy_lines_test")


def test_training_then_evaluation_alone_give_the_same_results(run):
    code, out, _ = run("OUTPUT_DIR", "trained")
    assert code == 0
    assert "toy_lines_test" in out
    results = json.loads(Path("trained/results.json").read_text())
    assert results["toy_lines_test"]["lines"]["error"] > 0
    for arguments in (
        ("--eval-only", "MODEL.WEIGHTS", "trained/model_final.pth", "OUTPUT_DIR", "evaluated"),
        ("--eval-only", "--resume", "OUTPUT_DIR", "trained"),
    ):
        assert run(*arguments)[0] == 0
        assert json.loads(Path(arguments[-1], "results.json").read_text()) == results


def test_a_run_ends_with_its_report(run):
    assert run("OUTPUT_DIR", "trained")[0] == 0
    page = Path("trained/report.html").read_text(encoding="utf-8")
    assert "toy_lines_test" in page and "Task lines" in page
    assert "none of these scalars" not in page


def test_a_run_without_test_datasets_has_a_report(run):
    assert run("OUTPUT_DIR", "trained", "DATASETS.TEST", "()")[0] == 0
    assert not Path("trained/results.json").exists()
    assert "Task lines" in Path("trained/report.html").read_text(encoding="utf-8")


def test_a_run_is_complete_without_its_report(run, monkeypatch):
    def fail(paths, output):
        raise RuntimeError("no report today")

    monkeypatch.setattr("uniperceiver_v2.report.write_report", fail)
    # A folder of its own: Detectron2 sets up the log of a folder once in a process.
    assert run("OUTPUT_DIR", "unreported")[0] == 0
    assert json.loads(Path("unreported/results.json").read_text())
    assert Path("unreported/model_final.pth").exists()
    assert not Path("unreported/report.html").exists()
    log = Path("unreported/log.txt").read_text()
    assert "the run is complete, but its report.html could not be written" in log and "no report today" in log


def test_resume_goes_on_where_training_stopped(run):
    assert run("OUTPUT_DIR", "a", "SOLVER.MAX_ITER", "10")[0] == 0
    assert run("--resume", "OUTPUT_DIR", "a")[0] == 0
    iterations = [json.loads(line)["iteration"] for line in Path("a/metrics.json").read_text().splitlines()]
    assert iterations == [19, 29, 30]  # as of a run that was to have 30 iterations from the beginning
    assert torch.load("a/model_final.pth", weights_only=True)["iteration"] == 29


def foreign_weights() -> None:
    torch.save({"model": {"shared.weight": torch.zeros(2, 2)}}, "foreign.pth")


def damaged_last_checkpoint() -> None:
    Path("output").mkdir()
    Path("output/last_checkpoint").write_bytes(b"\xff\xfe")


def cut_weights() -> None:
    torch.save({"model": {"shared.weight": torch.zeros(2, 2)}}, "cut.pth")
    Path("cut.pth").write_bytes(Path("cut.pth").read_bytes()[:300])


@pytest.mark.parametrize(
    ("prepare", "arguments", "expected"),
    [
        (None, ("SOLVER.BASE_LRR", "1"), "did you mean 'SOLVER.BASE_LR'"),
        (None, ("TASKS.NAMES", "['line']"), "did you mean 'lines'"),
        (None, ("DATASETS.TEST", "('toy_line_test',)"), "did you mean 'toy_lines_test'"),
        (None, ("--num-gpus", "500"), "--num-gpus 500"),
        (None, ("--eval-only",), "nothing to evaluate"),
        (None, ("--eval-only", "--resume"), "there is no checkpoint in ./output"),
        (damaged_last_checkpoint, ("--eval-only", "--resume"), "output/last_checkpoint cannot be read"),
        (damaged_last_checkpoint, ("--resume",), "output/last_checkpoint cannot be read"),
        (None, ("MODEL.WEIGHTS", "nowhere.pth"), "not found: nowhere.pth"),
        (
            foreign_weights,
            ("MODEL.WEIGHTS", "foreign.pth"),
            "shared.weight: [2, 2] in the checkpoint",
        ),
        (foreign_weights, ("--eval-only", "MODEL.WEIGHTS", "foreign.pth"), "of another architecture"),
        (cut_weights, ("MODEL.WEIGHTS", "cut.pth"), "cut.pth is cut short"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_1_before_any_training(run, prepare, arguments, expected):
    if prepare:
        prepare()
    code, _, err = run(*arguments)
    assert code == 1
    last = err[err.index("error: ") :]
    assert expected in last
    assert "Traceback" not in err
    assert not list(Path().rglob("model_*.pth"))


def test_unusable_data_is_found_before_training(run, toy_trainer, monkeypatch):
    def missing(cls, cfg, task, numbers):
        raise UserError(f"no data for {task}")

    monkeypatch.setattr(toy_trainer, "build_task_loader", classmethod(missing))
    code, _, err = run()
    assert (code, err.splitlines()[-1]) == (1, "error: no data for lines")
    assert "Traceback" not in err


def test_the_process_tells_by_its_exit_code(tmp_path):
    result = subprocess.run(
        [sys.executable, train_net.__file__, "SOLVER.BASE_LRR", "1", "OUTPUT_DIR", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: unknown configuration key 'SOLVER.BASE_LRR' on the command line")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
