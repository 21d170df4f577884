"""The common part of the studies: which process does a run, where a run resumes, and which processes are started."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def study(imported):
    return imported("study")


@pytest.fixture
def two_arms(imported, study, monkeypatch, tmp_path):
    """A study of one task. One of its arms has another rate."""
    document = tmp_path / "study.md"
    two_arms = study.Study(
        str(tmp_path / "rates.py"),
        arms={"usual": study.Arm(), "ten times": study.Arm(settings={"SOLVER.BASE_LR": 0.05})},
        tests={"digits": "digits_test"},
        metrics={"top-1": ("digits", "classification", "top1")},
        tables={"": {"usual rate": ("usual",), "ten times the rate": ("ten times",)}},
        document=document,
        first_column="rate",
        split="test",
    )
    two_arms.output = tmp_path / "runs"
    document.write_text("".join(imported("study_tables").marks_of("rates")))
    return two_arms


def test_a_run_has_one_owner_until_it_ends(study, tmp_path):
    folder = tmp_path / "whole_0"
    attempt = [
        sys.executable,
        "-c",
        f"import fcntl; fcntl.flock(open({str(folder / 'claim')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
    ]
    with study.claimed(folder) as ours:
        assert ours
        with study.claimed(folder) as again:
            assert not again
        assert subprocess.run(attempt, stderr=subprocess.DEVNULL).returncode != 0
    assert subprocess.run(attempt).returncode == 0


def test_a_run_of_another_process_is_left_to_it(study, two_arms):
    folder = two_arms.folder_of("usual", 0, 2)
    with study.claimed(folder):
        two_arms.train("usual", 0, 2)
    assert [path.name for path in folder.iterdir()] == ["claim"]


def test_an_interrupted_run_goes_on_to_the_same_weights(
    study, two_arms, small_data, small_config, delivered, monkeypatch, tmp_path
):
    def interrupted(*args):
        raise KeyboardInterrupt

    two_arms.arms["usual"].settings["SOLVER.CHECKPOINT_PERIOD"] = 3
    two_arms.train("usual", 0, 5)
    whole = dict(delivered)
    two_arms.output = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(study.Study, "_test", interrupted)
        with pytest.raises(KeyboardInterrupt):
            two_arms.train("usual", 0, 5)
    folder = two_arms.folder_of("usual", 0, 5)
    assert study.report_of(folder) is None
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    delivered.clear()
    two_arms.train("usual", 0, 5)
    assert "Starting training from iteration 3" in (folder / "log.txt").read_text()
    assert delivered.keys() == whole.keys() and all(torch.equal(whole[key], delivered[key]) for key in whole)
    assert not list(folder.glob("model_*.pth"))


def test_a_run_does_not_go_on_with_other_settings(study, two_arms, small_data, small_config, tmp_path):
    folder = two_arms.folder_of("usual", 0, 2)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(two_arms.configuration("usual", 0, 2).dump())
    two_arms.arms["usual"].settings["SOLVER.BASE_LR"] = 0.07
    with pytest.raises(SystemExit, match=r"usual_2_0 was begun with another SOLVER.BASE_LR; remove the folder"):
        two_arms.train("usual", 0, 2)
    assert study.report_of(folder) is None


def test_program_starts_every_run_seed_by_seed_and_writes_the_table(two_arms, monkeypatch, tmp_path):
    commands, elsewhere = [], str(tmp_path / "elsewhere")

    def popen(command, env, stdout):
        commands.append((command, env))
        code = int(command[-2:] == ["ten times", "0"])
        return contextlib.nullcontext(SimpleNamespace(wait=lambda: code))

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(SystemExit, match=r"failed: ten times 0$"):
        two_arms.main(["--seeds", "2", "--jobs", "1", "--iterations", "7", "--output", elsewhere])
    assert [command[-3:] for command, _ in commands] == [
        ["--run", name, seed] for seed in ("0", "1") for name in two_arms.arms
    ]
    assert {tuple(command[:6]) for command, _ in commands} == {
        (sys.executable, two_arms.program, "--iterations", "7", "--output", elsewhere)
    }
    assert all(environment["OMP_NUM_THREADS"] == "3" for _, environment in commands)
    assert "| usual rate |  |  | - |" in Path(elsewhere, two_arms.document.name).read_text()


def test_sigterm_to_the_program_stops_its_runs_and_begins_no_other(two_arms, tmp_path):
    """Each run writes that it began, and on SIGTERM that it was told to stop."""
    Path(two_arms.program).write_text(
        "import pathlib, signal, sys, time\n"
        "file = pathlib.Path(sys.argv[0]).with_name(f'{sys.argv[-2]}_{sys.argv[-1]}')\n"
        "signal.signal(signal.SIGTERM, lambda *_: (file.write_text('stopped'), sys.exit(143)))\n"
        "file.write_text('begun')\n"
        "time.sleep(60)\n"
    )
    first = tmp_path / "usual_0"

    def stop_when_begun():
        while not first.exists() or not first.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    usual = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_when_begun).start()
    with pytest.raises(SystemExit) as ended:
        two_arms.main(["--seeds", "2", "--jobs", "1"])
    assert ended.value.code == 143
    assert first.read_text() == "stopped"
    assert not (tmp_path / "ten times_0").exists()
    assert signal.getsignal(signal.SIGTERM) is usual


def test_data_is_prepared_for_runs_and_not_for_a_table_alone(two_arms, monkeypatch):
    steps = []
    two_arms.prepare = lambda: steps.append("prepare")
    monkeypatch.setattr(two_arms, "train", lambda *run: steps.append(run))
    two_arms.main(["--jobs", "0", "--output", str(two_arms.output)])
    assert steps == []
    two_arms.main(["--run", "usual", "1", "--iterations", "7", "--output", str(two_arms.output)])
    assert steps == ["prepare", ("usual", 1, 7)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arm", "iterations"),
    [("ablations", "single digits 0.0005", 130), ("cures", "denoising", 101), ("scaling_curves", "digits x0.5", 130)],
)
def test_program_runs_by_itself(name, arm, iterations, small_tree, monkeypatch, tmp_path):
    """A run of the small generalist itself in its own process, a little longer than the warm-up."""
    program = Path(__file__).parents[2] / "projects" / "uniperceiver_v2" / "experiments" / f"{name}.py"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_tree))
    options = ["--iterations", str(iterations), "--output", str(tmp_path / "runs"), "--run", arm, "0"]
    subprocess.run([sys.executable, str(program), *options], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    (report,) = (tmp_path / "runs").glob("*/*/run.json")
    assert report.parent.name.startswith(arm.replace(" ", "_")) and report.with_name("log.jsonl.gz").exists()
