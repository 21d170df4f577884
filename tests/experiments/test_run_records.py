"""What stays of a run: its log, its duration, and what git keeps of its folder."""

import json
import subprocess
from pathlib import Path

import pytest

RECORDS = Path(__file__).parents[2] / "projects" / "uniperceiver_v2" / "experiments" / "records"


@pytest.fixture
def records(imported):
    return imported("run_records")


def test_log_has_means_of_losses_and_accuracies_in_few_lines(records, tmp_path):
    rows = [
        {"iteration": 20 * n + 19, "digits/total_loss": 2.0 + n / 1000, "digits/time": 0.5, "lr": 5e-4, "time": 0.5}
        for n in range(150)
    ]
    rows[0]["digits/label_accuracy"] = 1 / 3
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records.keep_log(tmp_path, records.course(records.rows_of(tmp_path / "metrics.json")))
    log = records.log_of(tmp_path)
    assert len(log) == records.LOG_LINES
    assert log[0] == {"iteration": 59, "digits/label_accuracy": 0.333, "digits/total_loss": 2.0}
    assert log[-1] == {"iteration": 2999, "digits/total_loss": 2.15}
    assert records.minutes_of(rows) == pytest.approx(3000 * 0.5 / 60)


def test_a_young_run_has_an_empty_log(records, tmp_path):
    assert records.rows_of(tmp_path / "metrics.json") == []
    assert records.course([]) == [] and records.minutes_of([]) == 0 and records.log_of(tmp_path) == []


def test_git_keeps_reports_and_logs_alone():
    folder = RECORDS / "ablations" / "test" / "whole_3000_0"
    names = ["run.json", "log.jsonl.gz", "claim", "model_final.pth", "metrics.json", "inference/x/predictions.json"]
    asked = subprocess.run(
        ["git", "check-ignore", *(str(folder / name) for name in names)], cwd=RECORDS, capture_output=True, text=True
    )
    if asked.returncode == 128:
        pytest.skip("not a checkout of git")
    ignored = [line.removeprefix(f"{folder}/") for line in asked.stdout.splitlines()]
    assert ignored == names[2:]
