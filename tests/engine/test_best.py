"""The best checkpoint by a metric, early stopping, and the number of checkpoints that are kept."""

import glob
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator

from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.engine.metrics import reproducible
from uniperceiver_v2.errors import UserError

METRIC = "toy_lines_test/lines/error"
# Figures of the evaluations after iterations 9, 19, 29, ...
FIGURES = {9: 5.0, 19: 3.0, 29: 4.0, 39: float("nan"), 49: 3.0, 60: 2.0}


@pytest.fixture
def scripted(toy_trainer, cfg):
    """(cfg, trainer class) of a run whose evaluations give FIGURES, and of which a class attribute has those made."""

    class Figures(DatasetEvaluator):
        def __init__(self, trainer):
            self.trainer = trainer

        def reset(self):
            pass

        def process(self, inputs, outputs):
            pass

        def evaluate(self):
            iteration = self.trainer.current.storage.iter
            self.trainer.made.append(iteration)
            return {"lines": {"error": self.trainer.figures.get(iteration, math.nan)}}

    class Scripted(toy_trainer):
        figures = dict(FIGURES)
        made: list = []
        current = None

        def __init__(self, cfg):
            super().__init__(cfg)
            type(self).current = self

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Figures(cls)

    cfg.TEST.EVAL_PERIOD = 10
    cfg.TEST.BEST_METRIC, cfg.TEST.BEST_MODE = METRIC, "min"
    cfg.SOLVER.CHECKPOINT_PERIOD = 10
    return cfg, Scripted


def train(cfg, trainer_class, resume: bool = False, until: int | None = None):
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    if until is not None:
        trainer.max_iter = until
    return trainer.train(), trainer


def saved(cfg, name: str = "model_best") -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_weights_of_the_best_evaluation_are_kept(scripted):
    cfg, trainer_class = scripted
    trainer_class.figures[60] = 9.0
    train(cfg, trainer_class)
    best = saved(cfg)
    assert best["iteration"] == 19 and set(best) == {"model", "iteration"}
    assert same(best["model"], saved(cfg, "model_0000019")["model"])  # those that were evaluated: the averages
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"


def test_the_last_evaluation_can_be_the_best(scripted):
    cfg, trainer_class = scripted
    train(cfg, trainer_class)
    assert saved(cfg)["iteration"] == 60
    assert same(saved(cfg)["model"], saved(cfg, "model_final")["model"])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_mode_decides_what_is_better(scripted, mode):
    cfg, trainer_class = scripted
    cfg.TEST.BEST_MODE = mode
    train(cfg, trainer_class)
    assert saved(cfg)["iteration"] == {"min": 60, "max": 9}[mode]


def test_training_ends_when_nothing_improves(scripted):
    cfg, trainer_class = scripted
    cfg.SOLVER.EARLY_STOPPING = 3  # the figures of 29, 39 and 49 are no better than that of 19
    results, _ = train(cfg, trainer_class)
    assert trainer_class.made == [9, 19, 29, 39, 49]
    assert results["toy_lines_test"]["lines"]["error"] == 3.0
    assert saved(cfg)["iteration"] == 19
    assert saved(cfg, "model_final")["iteration"] == 49
    assert same(saved(cfg, "model_final")["model"], saved(cfg, "model_0000049")["model"])
    # Resumed, it ends at once, with the same files and an evaluation to report.
    before = (Path(cfg.OUTPUT_DIR) / "model_final.pth").read_bytes()
    trainer_class.figures[50] = 3.0
    results, trainer = train(cfg, trainer_class, resume=True)
    assert trainer.iter == 49 and results["toy_lines_test"]["lines"]["error"] == 3.0
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").read_bytes() == before
    cfg.SOLVER.EARLY_STOPPING = 4  # more patience: the run goes on to its end
    train(cfg, trainer_class, resume=True)
    assert saved(cfg, "model_final")["iteration"] == 59 and saved(cfg)["iteration"] == 60


@pytest.mark.parametrize("start", [0.0, 50.0])
def test_a_slow_start_does_not_end_training(scripted, start):
    """A metric that stays at its first value, such as an AP of 0, has not shown yet that anything is learned."""
    cfg, trainer_class = scripted
    cfg.TEST.BEST_MODE, cfg.SOLVER.EARLY_STOPPING = "max", 2
    trainer_class.figures = {9: start, 19: start, 29: start, 39: start + 10, 49: start, 60: start + 5}
    train(cfg, trainer_class)
    assert trainer_class.made == [9, 19, 29, 39, 49, 60]
    assert saved(cfg)["iteration"] == 39


def test_a_run_that_only_gets_worse_ends(scripted):
    """As fine-tuning may: the first value is the best, and the others differ from it."""
    cfg, trainer_class = scripted
    cfg.TEST.BEST_MODE, cfg.SOLVER.EARLY_STOPPING = "max", 2
    trainer_class.figures = {9: 80.0, 19: 80.0, 29: 70.0, 39: 80.0}
    train(cfg, trainer_class)
    assert trainer_class.made == [9, 19, 29, 39]
    assert saved(cfg)["iteration"] == 9


def outcome(cfg) -> tuple[dict, dict, list]:
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    rows = [json.dumps(reproducible(json.loads(line)), sort_keys=True) for line in lines]  # NaN equals itself as text
    return saved(cfg), saved(cfg, "model_final"), rows


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("first", [5.0, 3.0], ids=["moving", "slow"])
@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("stop", [10, 20, 25, 30, 50])
def test_an_interrupted_run_keeps_and_ends_as_a_whole_one(scripted, tmp_path, first, patience, stop):
    """The interruption comes after the checkpoint and before the evaluation of an iteration, or between two
    evaluations. In a slow run the first two evaluations are equal."""
    cfg, trainer_class = scripted
    trainer_class.figures[9] = first
    cfg.SOLVER.EARLY_STOPPING = patience
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    train(cfg, trainer_class)
    whole = outcome(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "halves")

    class Interrupted(trainer_class):
        def evaluate(self):
            if self.iter + 1 == stop:
                raise KeyboardInterrupt
            return super().evaluate()

        def run_step(self):
            if self.iter == stop and stop % 10:
                raise KeyboardInterrupt
            super().run_step()

    with pytest.raises(KeyboardInterrupt):
        train(cfg, Interrupted)
    train(cfg, trainer_class, resume=True)
    assert equal(whole, outcome(cfg))


@pytest.mark.parametrize("missing", ["model_best", "model_final"])
def test_a_file_that_was_not_written_in_time_is_written_on_resume(scripted, missing):
    """The run died after the row of metrics.json and before the file."""
    cfg, trainer_class = scripted
    cfg.SOLVER.EARLY_STOPPING = 3
    if missing == "model_best":
        trainer_class.figures.update({49: 1.0})
    train(cfg, trainer_class)
    folder = Path(cfg.OUTPUT_DIR)
    whole = saved(cfg, missing)
    (folder / f"{missing}.pth").unlink()
    if missing == "model_best":
        (folder / "model_final.pth").unlink()
        rows = (folder / "metrics.json").read_text().splitlines(keepends=True)
        kept = [row for row in rows if json.loads(row)["iteration"] <= 49]
        (folder / "metrics.json").write_text("".join(kept))
    (folder / "last_checkpoint").write_text("model_0000049.pth")
    trainer_class.figures[60] = 9.0
    train(cfg, trainer_class, resume=True)
    assert equal(whole["model"], saved(cfg, missing)["model"])
    assert saved(cfg)["iteration"] == (49 if missing == "model_best" else 19)
    assert saved(cfg, "model_final")["iteration"] == (59 if missing == "model_best" else 49)


def test_a_new_run_moves_the_best_of_an_earlier_one(scripted):
    cfg, trainer_class = scripted
    train(cfg, trainer_class)
    earlier = saved(cfg)
    trainer_class.figures = dict.fromkeys(FIGURES, float("nan"))
    train(cfg, trainer_class)
    assert not (Path(cfg.OUTPUT_DIR) / "model_best.pth").exists()
    assert equal(earlier, saved(cfg, "model_best.previous"))


def test_a_metric_that_no_evaluation_gives_is_told(scripted):
    cfg, trainer_class = scripted
    cfg.TEST.BEST_METRIC = "toy_lines_test/lines/eror"
    with pytest.raises(UserError, match="no evaluation gives 'toy_lines_test/lines/eror'; did you mean"):
        train(cfg, trainer_class)


def test_a_metric_that_the_only_evaluation_does_not_give_is_told_at_the_end(scripted, caplog):
    cfg, trainer_class = scripted
    cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = 0, "toy_lines_test/lines/eror"
    caplog.set_level(logging.WARNING, logger="uniperceiver_v2")
    results, _ = train(cfg, trainer_class)
    assert results["toy_lines_test"]["lines"]["error"] == 2.0
    assert any("no evaluation gives 'toy_lines_test/lines/eror'; did you mean" in m for m in caplog.messages)
    assert not (Path(cfg.OUTPUT_DIR) / "model_best.pth").exists()


@pytest.mark.parametrize("in_background", [False, True])
def test_the_folder_is_looked_at_only_after_a_checkpoint_was_written(scripted, monkeypatch, in_background):
    cfg, trainer_class = scripted
    cfg.SOLVER.CHECKPOINTS_KEPT, cfg.SOLVER.CHECKPOINTS_IN_BACKGROUND = 2, in_background
    looks, usual = [], glob.glob
    monkeypatch.setattr("glob.glob", lambda path: looks.append(path) or usual(path))
    train(cfg, trainer_class)
    assert len([path for path in looks if path.endswith("model_*")]) <= 8  # of 60 iterations


def test_at_most_so_many_checkpoints_are_kept_over_interruptions(scripted):
    cfg, trainer_class = scripted
    cfg.SOLVER.CHECKPOINTS_KEPT = 2
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    (folder / "model_0000099.pth").write_bytes(b"of an earlier run")
    train(cfg, trainer_class, until=30)
    train(cfg, trainer_class, resume=True)
    names = {path.name for path in folder.glob("model_*.pth")}
    assert names == {
        "model_0000049.pth",
        "model_0000059.pth",
        "model_0000099.pth",
        "model_best.pth",
        "model_final.pth",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"SOLVER.EARLY_STOPPING": -1}, "SOLVER.EARLY_STOPPING is a number"),
        ({"SOLVER.CHECKPOINTS_KEPT": -2}, "SOLVER.CHECKPOINTS_KEPT is a number"),
        ({"SOLVER.EARLY_STOPPING": 2, "TEST.EVAL_PERIOD": 0}, "needs a TEST.BEST_METRIC, and a TEST.EVAL_PERIOD"),
        ({"SOLVER.EARLY_STOPPING": 2, "TEST.BEST_METRIC": ""}, "needs a TEST.BEST_METRIC"),
        ({"TEST.BEST_MODE": "mx"}, "TEST.BEST_MODE: unknown name 'mx'; did you mean 'max'"),
        ({"TEST.BEST_METRIC": "lines/error"}, "is DATASET/ROW/COLUMN"),
        ({"TEST.BEST_METRIC": "other/lines/error"}, r"with a dataset of DATASETS.TEST \(toy_lines_test\)"),
    ],
)
def test_settings_that_cannot_be_are_told(scripted, settings, expected):
    cfg, _ = scripted
    cfg.TASKS.lines.DATASETS = cfg.TASKS.signs.DATASETS = ["toy_lines_test"]
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    with pytest.raises(UserError, match=expected):
        check_config(cfg, training=True)


def test_fine_tuning_loads_what_fits_and_lists_the_rest(scripted, tmp_path, logged_by_fvcore):
    cfg, trainer_class = scripted
    state = trainer_class.build_model(cfg).state_dict()
    other = {"shared.weight": state["shared.weight"] + 1, "line.weight": torch.zeros(3, 4), "old": torch.zeros(2)}
    torch.save({"model": other, "iteration": 7}, tmp_path / "other.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "other.pth")
    with pytest.raises(UserError, match="of another architecture"):
        trainer_class(cfg).resume_or_load(resume=False)
    cfg.MODEL.UNIPERCEIVER_V2.WEIGHTS_MAY_DIFFER = True
    trainer = trainer_class(cfg)
    kept = trainer.model.line.weight.clone()
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0
    assert torch.equal(trainer.model.shared.weight, other["shared.weight"])
    assert torch.equal(trainer.model.line.weight, kept)
    (message,) = [m for m in logged_by_fvcore() if "weights are loaded" in m]
    for line in (
        "1 of the model's 4 weights",
        "line.weight: [3, 4] in the checkpoint, [1, 4] in the model",
        "old: [2] in the checkpoint, not in the model",
        "shared.bias: [4] in the model, not in the checkpoint",
    ):
        assert line in message
    torch.save({"model": {"old": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="none of the 1 weights of the checkpoint fits the model"):
        trainer_class(cfg).resume_or_load(resume=False)


def test_a_resumed_run_needs_weights_that_fit(scripted):
    cfg, trainer_class = scripted
    cfg.MODEL.UNIPERCEIVER_V2.WEIGHTS_MAY_DIFFER = True
    train(cfg, trainer_class, until=10)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    content = torch.load(path, weights_only=True)
    content["model"]["old"] = torch.zeros(2)
    torch.save(content, path)
    with pytest.raises(UserError, match="of another architecture"):
        trainer_class(cfg).resume_or_load(resume=True)


@pytest.fixture
def logged_by_fvcore(caplog):
    """() -> the warnings that checkpointers have logged so far in the test."""
    caplog.set_level(logging.WARNING, logger="fvcore")
    return lambda: [record.getMessage() for record in caplog.records]
