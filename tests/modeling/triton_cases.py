"""Runs a file of tests of Triton kernels in a process of its own, with Triton's interpreter or on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ON_GPU = torch.cuda.is_available()

interpreted_and_compiled = pytest.mark.parametrize(
    "interpret",
    [
        pytest.param("1", id="interpreted"),
        pytest.param("0", id="compiled", marks=pytest.mark.skipif(not ON_GPU, reason="needs a GPU")),
    ],
)


def run_cases(cases: Path, interpret: str) -> tuple[int, str]:
    """Exit code and output of pytest. Triton reads the variable at its first import, which may have happened in this
    process already."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cases],
        env=environment | {"TRITON_INTERPRET": interpret},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return run.returncode, run.stdout[-6000:]
