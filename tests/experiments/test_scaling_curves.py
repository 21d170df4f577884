"""The study of scaling: its points along a run, its widths, its fits, and its tables."""

import json
import re

import pytest
import torch
from detectron2.engine import HookBase

from uniperceiver_v2.config import load_config
from uniperceiver_v2.meta_arch import UniPerceiverV2


@pytest.fixture
def curves(imported, monkeypatch, tmp_path):
    """The program as a module, with its own folder for runs and document."""
    module = imported("scaling_curves")
    monkeypatch.setattr(module.STUDY, "output", tmp_path / "runs")
    monkeypatch.setattr(module.STUDY, "split", "test")
    monkeypatch.setattr(module.STUDY, "document", tmp_path / "scaling_curves.md")
    first, last = imported("study_tables").marks_of("scaling_curves")
    module.STUDY.document.write_text(f"before\n{first}old\n{last}after\n")
    return module


@pytest.fixture
def small_curves(curves, small_data, small_config, monkeypatch):
    """With points after 6 and 12 iterations, and small arms."""
    monkeypatch.setattr(curves, "POINTS", (6, 12, 1000))
    arms = {"joint x1": (), "scenes x1": ("scenes",)}
    steps = {"SOLVER.STEPS": (), "SOLVER.CHECKPOINT_PERIOD": 2}
    monkeypatch.setattr(curves.STUDY, "arms", {name: type(curves.ARMS[name])(t, steps) for name, t in arms.items()})
    return curves


def leave_points(curves, name, values, seed=0):
    """``values`` of all metrics by point."""
    tasks = curves.STUDY.tasks_of(name)
    folder = curves.STUDY.folder_of(name, seed, 0)
    folder.mkdir(parents=True)
    results = {point: {curves.FIGURES[task]: value for task in tasks} for point, value in values.items()}
    (folder / "run.json").write_text(json.dumps({"split": "test", "results": results, "date": f"2025-03-1{seed}"}))


def test_widths_are_multiples_of_the_small_generalists(curves):
    counts = []
    for width in curves.WIDTHS:
        cfg = curves.STUDY.configuration(curves.arm_name("joint", width), 0, 2000)
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in UniPerceiverV2(cfg).parameters()) / 1e6)
        assert 128 * width == cfg.MODEL.UNIPERCEIVER_V2.EMBED_DIM and cfg.SOLVER.STEPS == ()
    assert [round(count, 1) for count in counts] == [1.9, 5.8, 21.4]
    own = load_config(str(curves.TINY_CONFIG)).MODEL.UNIPERCEIVER_V2
    assert own == curves.STUDY.configuration("joint x1", 0, 2000).MODEL.UNIPERCEIVER_V2


def test_a_point_has_as_many_samples_of_a_task_alone_as_jointly(curves):
    assert curves.STUDY.points_of("joint x1", 2000) == {500: 500, 1000: 1000, 2000: 2000}
    assert curves.STUDY.points_of("scenes x2", 2000) == {160: 500, 320: 1000, 640: 2000}
    assert list(curves.STUDY.points_of("joint x1", 50_000).values()) == list(curves.POINTS)
    assert curves.STUDY.configuration("scenes x2", 0, 2000).SOLVER.MAX_ITER == 640


def test_each_point_of_a_run_is_evaluated_once(small_curves, imported, monkeypatch):
    study, evaluated = small_curves.STUDY, []
    test = imported("study").Study._test

    def counting_test(self, trainer, tasks):
        evaluated.append(trainer.iter + 1)
        return test(self, trainer, tasks)

    monkeypatch.setattr(imported("study").Study, "_test", counting_test)
    folder = study.folder_of("scenes x1", 0, 12)
    study.train("scenes x1", 0, 6)
    assert evaluated == [2] and list(study._results(folder)) == ["6"] and not study.is_finished("scenes x1", 0, 12)
    study.train("scenes x1", 0, 12)
    assert evaluated == [2, 4] and list(study._results(folder)) == ["6", "12"]
    assert set(study._results(folder)["12"]) == {"box AP"}
    study.train("scenes x1", 0, 12)
    assert evaluated == [2, 4] and not list(folder.glob("model_*.pth"))
    assert imported("run_records").log_of(folder)[-1]["iteration"] == 3


def test_a_run_that_ends_before_an_evaluation_makes_it_when_it_goes_on(small_curves, imported, monkeypatch):
    study, at = small_curves.STUDY, small_curves.AtIterations
    folder = study.folder_of("scenes x1", 0, 12)
    with monkeypatch.context() as patch:
        patch.setattr(at, "_reach", lambda self, iteration: 1 / (iteration != 2))  # killed with the first point's turn
        with pytest.raises(ZeroDivisionError):
            study.train("scenes x1", 0, 12)
    assert not study._results(folder) and list(folder.glob("model_0000001.pth"))
    study.train("scenes x1", 0, 12)
    assert "Starting training from iteration 2" in (folder / "log.txt").read_text()
    assert list(study._results(folder)) == ["6", "12"]
    assert issubclass(at, HookBase)


def test_a_joint_run_has_all_metrics_and_stands_in_the_tables(small_curves):
    options = ["--iterations", "6", "--output", str(small_curves.STUDY.output)]
    small_curves.STUDY.main([*options, "--run", "joint x1", "0"])
    (values,) = small_curves.STUDY._results(small_curves.STUDY.folder_of("joint x1", 0, 6)).values()
    assert set(values) == set(small_curves.FIGURES.values())


def test_power_law_is_found_without_the_points_on_the_plateau(curves):
    errors = {x: 400 * x**-0.5 for x in (500, 1000, 2000, 5000)}
    fit = curves.power_law({100: 1.0, **{x: 100 - error for x, error in errors.items()}})
    assert fit.exponent == pytest.approx(0.5) and fit.r2 == pytest.approx(1) and fit.points == 4
    assert fit.at(500) == pytest.approx(errors[500])
    assert curves.power_law({500: 50.0, 1000: 60.0}) is None
    bent = curves.power_law({500: 50.0, 1000: 90.0, 2000: 60.0})
    assert bent.r2 < 0.5


def test_tables_compare_joint_with_alone_at_each_point(curves):
    for seed, shift in enumerate((0.0, 1.0)):
        leave_points(curves, "joint x1", {500: 20.0 + shift, 1000: 50.0, 2000: 80.0}, seed)
    leave_points(curves, "scenes x1", {500: 30.0, 1000: 45.0})
    for width in ("0.5", "2"):
        leave_points(curves, f"joint x{width}", {500: 10.0, 1000: 20.0 * float(width)})
    curves.STUDY.main(["--jobs", "0", "--seeds", "2", "--output", str(curves.STUDY.output)])
    text = curves.STUDY.document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| split: test | width | 500 | 1,000 | 2,000 |" in text
    assert "| box AP | 1 | 20.5 ± 0.7 / 30.0 | 50.0 ± 0.0 / 45.0 | 80.0 ± 0.0 / - |" in text
    assert "5 runs have points. Their last ones are of 2025-03-10 to 2025-03-11." in text
    assert "| box AP | 1 | -10.0 | +5.0 | - |" in text
    (joint,) = re.findall(r"^\| box AP \| joint \|(.+)\|$", text, re.MULTILINE)
    assert [cell.count("points") for cell in joint.split("|")] == [0, 1, 0, 1], "fits need three points"
    assert curves.STUDY.document.with_suffix(".png").stat().st_size > 10_000


def test_widths_and_tasks_without_a_point_have_no_row(curves):
    leave_points(curves, "scenes x1", {500: 30.0})
    curves.STUDY.main(["--jobs", "0", "--output", str(curves.STUDY.output)])
    values, gains, _ = curves.STUDY.document.read_text().split("\n\n|", 3)[1:]
    for table in (values, gains):
        assert re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", table, re.MULTILINE) == [("box AP", "1")]


def test_without_runs_there_is_no_plot(curves):
    curves.STUDY.main(["--jobs", "0", "--output", str(curves.STUDY.output)])
    assert "No run has a point yet." in curves.STUDY.document.read_text()
    assert not curves.STUDY.document.with_suffix(".png").exists()
