"""A hundred cases of each kind and the kept worst ones give no finding; and the campaign finds what is planted."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from uniperceiver_v2.errors import UserError

FOLDER = Path(__file__).parent
KINDS = sorted(path.stem for path in (FOLDER / "kinds").glob("*.py"))
CASES = 100  # of each kind, but for those that are dear
FEWER = {"resume": 20}


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def campaign(*options: str) -> subprocess.CompletedProcess:
    """The program in a process of its own, as it forks: pytest's workers have threads."""
    return subprocess.run(
        [sys.executable, str(FOLDER / "campaign.py"), "--jobs", "1", *options], capture_output=True, text=True
    )


def rows_of(output: str) -> dict[str, list[int]]:
    """{kind: [cases, handled, refused, findings]}"""
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", output, re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """A campaign of a hundred cases of each kind, and its output folder."""
    folder = tmp_path_factory.mktemp("campaign")
    fewer = [f"{name}={number}" for name, number in FEWER.items()]
    return campaign("--cases", str(CASES * len(KINDS)), "--fewer", *fewer, "--output", str(folder)), folder


def test_a_hundred_broken_files_of_each_kind_give_no_finding(ended):
    process, _ = ended
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    rows = rows_of(process.stdout)
    for name in KINDS:
        cases, handled, refused, findings = rows[name]
        assert cases >= FEWER.get(name, CASES) and findings == 0 and handled + refused == cases
        assert refused > 3  # the damage is felt


def test_a_named_pipe_in_place_of_a_file_is_refused():
    program = [sys.executable, str(FOLDER / "pipes.py")]
    process = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    files = dict(re.findall(r"^(\w+) (\d+)$", process.stdout, re.MULTILINE))
    assert files.keys() == set(KINDS) and min(map(int, files.values())) > 0


def test_a_campaign_that_was_stopped_goes_on_where_it_was(ended):
    process, folder = ended
    log = folder / "blocks.jsonl"
    lines = log.read_text().splitlines()
    last = next(line for line in reversed(lines) if json.loads(line)["kind"] == "images")
    log.write_text("".join(f"{line}\n" for line in lines if line != last))
    again = campaign("--kinds", "images", "--cases", str(CASES), "--output", str(folder))
    assert rows_of(again.stdout)["images"] == rows_of(process.stdout)["images"]
    assert sorted(log.read_text().splitlines()) == sorted(lines)


class Planted:
    """A kind whose reader does what its file says."""

    together = 3

    def read(self, path: Path, only_bytes: bool) -> None:
        getattr(self, path.name)(path)

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message

    def good(self, path):
        pass

    def refused(self, path):
        raise UserError(f"{path} is bad")

    def unnamed(self, path):
        raise UserError("something is bad")

    def wordy(self, path):
        error = UserError(str(path))
        error.args = (f"{path} {'is bad' * 2000}",)  # which the class itself would shorten
        raise error

    def traceback(self, path):
        raise IndexError("list index out of range")

    def crash(self, path):
        os.kill(os.getpid(), signal.SIGSEGV)

    def endless(self, path):
        while True:
            pass

    def waiting(self, path):
        time.sleep(60)

    def greedy(self, path):
        self.kept = np.ones(2**26, np.float64)  # 512 MiB; a forked process begins with less than it was forked from

    def silent(self, path):
        raise running_module.SilentDamage("another pixel")

    def exits(self, path):
        os._exit(3)


running_module = load("running")


@pytest.mark.parametrize(
    ("name", "result", "reason"),
    [
        ("good", "handled", ""),
        ("refused", "refused", ""),
        ("unnamed", "finding", "does not name the file"),
        ("wordy", "finding", "characters"),
        ("traceback", "finding", "IndexError at test_campaign.py"),
        ("crash", "finding", "signal SIGSEGV"),
        ("endless", "finding", "more than 1 s"),
        ("waiting", "finding", "of waiting"),
        ("greedy", "finding", "MiB of memory"),
        ("silent", "finding", "another pixel"),
        ("exits", "finding", "no outcome"),
    ],
)
def test_what_is_planted_is_found(monkeypatch, name, result, reason):
    monkeypatch.setattr(running_module, "MOST_SECONDS", 1)
    monkeypatch.setattr(running_module, "MOST_WAITING", 3 if name == "waiting" else 120)
    if name == "greedy":
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        monkeypatch.setattr(running_module, "MOST_MEMORY", own)
    cases = [running_module.Damaged(each, b"") for each in ("good", name, "refused", "good")]
    before, outcome, *after = running_module.run(Planted(), cases)
    assert outcome.result == result and reason in outcome.reason
    assert [before.result, *(each.result for each in after)] == ["handled", "refused", "handled"]
