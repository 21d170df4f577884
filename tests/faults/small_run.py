"""A run of the smallest complete model by the program itself: its settings, its command line, its final weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from uniperceiver_v2.checkpoint.parts import read_parts

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "projects" / "uniperceiver_v2" / "train_net.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # of runs

SMALL = {
    "_BASE_": str(REPOSITORY / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"),
    "MODEL": {
        "DEVICE": "cpu",
        "UNIPERCEIVER_V2": {
            "EMBED_DIM": 32,
            "BACKBONE": {"CONFIG": {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}},
            "DECODER": {"LAYERS": 1, "FFN_DIM": 32, "EXPERTS": 3},
            "REGION": {"DIM": 32, "MASK_DIM": 16, "HEADS": 4, "FFN_DIM": 48, "DECODER_LAYERS": 2, "NUM_QUERIES": 12},
            "CRITERION": {"NUM_POINTS": 64},
        },
    },
    "TASKS": {
        name: {"IMS_PER_BATCH": 4, "SAMPLING_RATIO": 1.0}
        for name in ("scenes", "digits", "scene_captions", "scene_pairs", "corpus")
    },
    "DATASETS": {"TEST": []},
    "SOLVER": {"MAX_ITER": 40, "WARMUP_ITERS": 5, "CHECKPOINT_PERIOD": 3, "WEIGHT_AVERAGING": 0.9},
}


def write_config(folder: Path) -> Path:
    """Writes SMALL to a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def command(
    config: Path, output: Path, *options: str, ranks: int = 1, restarts: int = 0, program: Path = PROGRAM
) -> list[str]:
    """The command line of a run. For several ranks it is torchrun's."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        launcher += [f"--max_restarts={restarts}", "--monitor-interval=0.1"]
    return [*launcher, str(program), "--config-file", str(config), *options, "OUTPUT_DIR", str(output)]


def start(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    """Start a run, whose output goes to output.txt in the folder."""
    log = open(folder / "output.txt", "ab")  # noqa: SIM115  (the process writes to it)
    environment = {**ENVIRONMENT, **variables}
    return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)


def finish(arguments: list[str], folder: Path, **variables: str) -> None:
    process = start(arguments, folder, **variables)
    assert process.wait() == 0, (folder / "output.txt").read_text()[-4000:]


def wait_for(what: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the run was over too soon"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def content(output: Path, name: str) -> dict:
    """A checkpoint of a run, whether it is a file or a directory of parts."""
    parts = output / name
    return read_parts(str(parts)) if parts.is_dir() else torch.load(output / f"{name}.pth", weights_only=True)


def state(output: Path) -> dict[str, torch.Tensor]:
    """All final weights and moments of a run."""
    checkpoint = content(output, "model_final")
    moments = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    return {
        **checkpoint["model"],
        **{
            f"raw {name}": value for name, value in checkpoint["trainer"]["hooks"]["WeightAveraging"]["weights"].items()
        },
        **{f"{index} {name}": value for index, values in moments.items() for name, value in values.items()},
    }


def differences(a: Path, b: Path) -> list[str]:
    """The names of final tensors in which two runs differ."""
    first, second = state(a), state(b)
    return [key for key in first.keys() | second.keys() if not torch.equal(first[key], second[key])]


def workers_of(launcher_pid: int) -> list[int]:
    """The pids of the training processes that torchrun has started."""
    children = Path(f"/proc/{launcher_pid}/task/{launcher_pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"train_net.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
