"""Images that cannot be read for a while change nothing, and one that never can ends the run by its name."""

from collections import Counter
from pathlib import Path

import pytest

from .small_run import command, differences, finish, start

PROGRAM = Path(__file__).with_name("failing_disk.py")
OPTIONS = ("SOLVER.MAX_ITER", "12", "DATASETS.TEST", '["digit_scenes_test"]', "DATALOADER.NUM_WORKERS", "2")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_errors_that_pass_change_nothing(config, tmp_path, ranks):
    failing, spared, failures = tmp_path / "failing", tmp_path / "spared", tmp_path / "failures.txt"
    finish([*command(config, spared, ranks=ranks), *OPTIONS], tmp_path)
    finish([*command(config, failing, ranks=ranks, program=PROGRAM), *OPTIONS], tmp_path, FAILURES=str(failures))
    assert differences(failing, spared) == []
    assert (failing / "results.json").read_text() == (spared / "results.json").read_text()
    numbers = Counter(line.split()[0] for line in failures.read_text().splitlines())
    print(f"{ranks} processes: {dict(numbers)}")
    assert min(numbers["EIO"], numbers["ESTALE"]) >= 5


@pytest.mark.slow
def test_an_error_that_does_not_pass_ends_the_run_by_the_files_name(config, data, tmp_path):
    broken = sorted((data / "digit_scenes" / "images" / "train").iterdir())[5]
    variables = {"FAILURES": str(tmp_path / "failures.txt"), "BROKEN": broken.name}
    process = start([*command(config, tmp_path / "out", program=PROGRAM), *OPTIONS], tmp_path, **variables)
    assert process.wait() == 1
    last = (tmp_path / "output.txt").read_text().splitlines()[-1]
    assert last.startswith(f"error: {broken} cannot be read: Input/output error (errno 5, EIO), 4 times in 1 seconds")
