"""Two processes with half a batch each give the same training as one, although each task leaves parameters unused."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = Path(__file__).parent / "two_ranks.py"


def start(rank: int, folder: Path) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(rank), "2", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_ranks_train_as_one(tmp_path):
    processes = [start(rank, tmp_path) for rank in (0, 1)]
    runpy.run_path(str(PROGRAM))["main"](0, 1, str(tmp_path))
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    one, two = (torch.load(tmp_path / str(n) / "model_final.pth", weights_only=True)["model"] for n in (1, 2))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
    rows = [
        [json.loads(line) for line in (tmp_path / str(n) / "metrics.json").read_text().splitlines()] for n in (1, 2)
    ]
    losses = [[r["total_loss"] for r in run if "total_loss" in r] for run in rows]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-6)
