"""Results and course of a run stay among the records."""

import json

import pytest


@pytest.fixture
def keep_run(imported, monkeypatch):
    module = imported("keep_run")
    monkeypatch.setattr(module, "split_of_data", lambda: "test")
    return module


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("SEED: 2\n")
    (folder / "results.json").write_text(json.dumps({"digits_test": {"classification": {"top1": 98.0}}}))
    rows = [{"iteration": 19, "time": 3.0, "digits/label_accuracy": 0.5}, {"iteration": 39, "time": 6.0}]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_is_kept_by_its_seed(keep_run, imported, run, tmp_path):
    kept = keep_run.main([str(run), "usual", "2", "--records", str(tmp_path)])
    records = imported("run_records")
    assert kept == tmp_path / "usual" / "test" / "2"
    report = records.report_of(kept)
    assert report["results"]["digits_test"]["classification"]["top1"] == 98.0 and report["minutes"] == 3.0
    assert records.log_of(kept)[0] == {"iteration": 19, "digits/label_accuracy": 0.5}


def test_another_seed_is_refused(keep_run, run):
    with pytest.raises(SystemExit, match=r"config.yaml has SEED 2, not 0"):
        keep_run.main([str(run), "usual", "0"])
