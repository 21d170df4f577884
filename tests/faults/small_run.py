"""A run of the smallest complete model by the program itself: its settings, its command line, its final weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "projects" / "uniperceiver_v2" / "train_net.py"

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
    "SOLVER": {"MAX_ITER": 40, "WARMUP_ITERS": 5, "DECODER_DELAY": 5, "CHECKPOINT_PERIOD": 3, "WEIGHT_AVERAGING": 0.9},
}


def write_config(folder: Path) -> Path:
    """Writes SMALL to a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def command(config: Path, output: Path, *options: str, ranks: int = 1, restarts: int = 0) -> list[str]:
    """The command line of a run. For several ranks it is torchrun's."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        launcher += [f"--max_restarts={restarts}", "--monitor-interval=0.1"]
    program = [str(PROGRAM), "--config-file", str(config), *options]
    return [*launcher, *program, "OUTPUT_DIR", str(output)]


def state(output: Path) -> dict[str, torch.Tensor]:
    """All final weights and moments of a run."""
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
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
