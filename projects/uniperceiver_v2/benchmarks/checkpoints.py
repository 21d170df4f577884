"""How long a checkpoint holds up training, written at once and in the background, and the memory of a resume.

    python projects/uniperceiver_v2/benchmarks/checkpoints.py [--millions 50] [--repeats 5]

The checkpoint is that of a training: parameters, their average, and two moments, 16 bytes for a parameter. The program
prints a Markdown table. "until written" ends when ``last_checkpoint`` names the file. Steps of training (a product of
matrices) run meanwhile, and the table has their time beside that of steps without a checkpoint. A resume's memory is
what the process holds for itself, beside the pages of the file that it shares with others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peak_memory import own_memory
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.reading import read_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=50, help="parameters")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints of each way")
    args = parser.parse_args()
    width = int((args.millions * 1e6 / 16) ** 0.5)
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(16)])
    state = State(model)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            name: AtomicCheckpointer(model, folder, state=state, in_background=name == "in the background")
            for name in ("at once", "in the background")
        }
        usual = statistics.median(step() for _ in range(20))
        held_up, written, slower = ({name: [] for name in ways} for _ in range(3))
        for _ in range(args.repeats):
            for name, checkpointer in ways.items():
                start = time.perf_counter()
                checkpointer.save("model_0000001")
                held_up[name].append(time.perf_counter() - start)
                steps = []
                while not is_written(folder):
                    steps.append(step())
                checkpointer.wait()
                written[name].append(time.perf_counter() - start)
                if steps:
                    slower[name].append(statistics.mean(steps) / usual)
                Path(folder, "last_checkpoint").unlink()
        size = Path(folder, "model_0000001.pth").stat().st_size
        print(f"{size / 2**20:.0f} MiB\n\n| written | s training stands still | s until written | steps meanwhile |")
        print("|---|---:|---:|---:|")
        for name in ways:
            meanwhile = f"{statistics.median(slower[name]):.2f} x" if slower[name] else ""
            times = (statistics.median(found[name]) for found in (held_up, written))
            print(f"| {name} | {' | '.join(f'{value:.3f}' for value in times)} | {meanwhile} |")
        print("\n| read | MiB of its own |\n|---|---:|")
        for name, mapped in (("mapped", True), ("copied", False)):
            before = own_memory()
            found = read_tensors(f"{folder}/model_0000001.pth", mapped=mapped)
            print(f"| {name} | {(own_memory() - before) / 2**20:.0f} |")
            del found


def is_written(folder: str) -> bool:
    """Whether the checkpoint is the last one."""
    return Path(folder, "last_checkpoint").exists()


class State:
    """The state beside the model: an average and two moments of each parameter."""

    def __init__(self, model: nn.Module):
        self._tensors = [[p.detach().clone() for p in model.parameters()] for _ in range(3)]

    def state_dict(self) -> dict:
        return {"tensors": self._tensors}


def step() -> float:
    """Seconds of a step of training."""
    start = time.perf_counter()
    for _ in range(8):
        torch.mm(*torch.ones(2, 512, 512))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
