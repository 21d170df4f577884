"""The time of a training iteration by part: each task of configs/digit_scenes, forward and backward.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/training_profile.py [--threads 1] [--repeats 10]

Batches come from the trainer's own loaders, and the optimizer is the task's own. Times are medians. With one thread
they are processor times, so that other programs on the machine matter little. Otherwise they are wall-clock times. The
backward time of a part is the time of the autograd nodes that its forward pass made. The sequence number of a node
tells which part that was. The program prints a Markdown table of the parts and one of the heaviest operations, with
their numbers of calls.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import operator
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from operations import Operations
from torch import nn
from torch.profiler import ProfilerActivity, profile

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.solver import build_optimizer

PARTS = {  # part: (module, its methods); the time of a part does not include the parts inside it
    "backbone": ("image_encoder.backbone", "forward"),
    "scale projection": ("image_encoder.regions.project", "forward"),
    "region encoder": ("image_encoder.regions.encoder", "forward"),
    "pixel embedding": ("image_encoder.regions.pixel_embedding", "forward"),
    "query selection": ("image_encoder.regions.select", "forward"),
    "region decoder": ("image_encoder.regions.decoder", "forward"),
    "region heads": ("image_encoder.regions", "forward"),
    "matching": ("image_encoder.regions.criterion", "match"),
    "criterion": ("image_encoder.regions", "losses"),
    "fusion, global tokens": ("image_encoder", "forward"),
    "text encoder": ("text_encoder", "forward"),
    "unified decoder": ("decoder", "read_spe", "read_last"),
    "likelihood": ("likelihood", "forward"),
    "likelihood of words": ("likelihood", "of_directions"),
    "task, images and targets": ("", "forward"),
}
STEPS = ("data", "gradients of weights", "other backward", "optimizer")


class Clock:
    """Measures the forward time of each part without the parts inside it, and records which part made which autograd
    nodes.

    Args:
        model: the methods of its parts are wrapped in place.
    """

    def __init__(self, model: nn.Module):
        self.now: Callable[[], float] = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0
        self._first_nodes: list[int] = []
        self._owners: list[str] = []
        for part, (path, *methods) in PARTS.items():
            owner = operator.attrgetter(path)(model) if path else model
            for method in methods:
                setattr(owner, method, self._timed(getattr(owner, method), part))

    def reset(self) -> None:
        self.seconds.clear()
        self._first_nodes.clear()
        self._owners.clear()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        self._own()
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()
            self._own()

    def owner(self, node: int) -> str:
        """The part that made an autograd node, by the node's sequence number."""
        place = bisect.bisect_right(self._first_nodes, node) - 1
        return self._owners[place] if place >= 0 and node < self._first_nodes[-1] else "gradients of weights"

    def _switch(self) -> None:
        now = self.now()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _own(self) -> None:
        self._first_nodes.append(torch.autograd._get_sequence_nr())
        self._owners.append(self._stack[-1] if self._stack else "other backward")

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return method(*args, **kwargs)

        return timed


def iteration(model: nn.Module, optimizer: torch.optim.Optimizer, clock: Clock, batches: Iterator, task: str) -> None:
    """An iteration as in the trainer. The time of each part is in ``clock`` afterwards."""
    clock.reset()
    with clock.part("data"):
        batch = next(batches)
    with clock.part("optimizer"):
        optimizer.zero_grad()
    with EventStorage():
        total = sum(model(batch).values())
    with clock.part("backward"):
        total.backward()
    with clock.part("optimizer"):
        optimizer.step(task=task)


def backward_shares(events: list, clock: Clock) -> dict[str, float]:
    """The share of each part in the backward time, by its autograd nodes."""
    times: dict[str, float] = defaultdict(float)
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function"):
            accumulates = "AccumulateGrad" in event.name
            part = "gradients of weights" if accumulates else clock.owner(event.sequence_nr)
            times[part] += event.cpu_time_total
    whole = sum(times.values())
    return {part: value / whole for part, value in times.items()}


def measure(
    model: nn.Module, optimizer: torch.optim.Optimizer, clock: Clock, batches: Iterator, task: str, repeats: int
) -> tuple:
    """Seconds of each part, forward and backward, and the operations."""
    runs = []
    for index in range(2 + repeats):
        torch.manual_seed(index)
        iteration(model, optimizer, clock, batches, task)
        if index >= 2:
            runs.append(dict(clock.seconds))
    forward = {part: statistics.median(run.get(part, 0.0) for run in runs) for run in runs for part in run}
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        iteration(model, optimizer, clock, batches, task)
    events = recorded.events()
    whole = forward.pop("backward")
    backward = {part: share * whole for part, share in backward_shares(events, clock).items()}
    return forward, backward, Operations.of_events(events)


def table_of_parts(found: dict[str, tuple]) -> Iterator[str]:
    yield "| part | " + " | ".join(f"{task} fwd ms | bwd ms" for task in found) + " |"
    yield "|---" * (1 + 2 * len(found)) + "|"

    def cells(of: Callable[[dict], float]) -> Iterator[str]:
        for forward, backward, *_ in found.values():
            yield from (f"{1000 * of(times):.1f}" if of(times) > 0 else "" for times in (forward, backward))

    for part in (*PARTS, *STEPS):
        row = list(cells(lambda times, part=part: times.get(part, 0.0)))
        if any(row):
            yield f"| {part} | " + " | ".join(row) + " |"
    yield "| **sum** | " + " | ".join(cells(lambda times: sum(times.values()))) + " |"
    totals = (1000 * (sum(forward.values()) + sum(backward.values())) for forward, backward, *_ in found.values())
    yield "| **iteration** | " + " | ".join(f"**{total:.1f}** |" for total in totals) + " |"


def table_of_operations(found: dict[str, tuple], count: int) -> Iterator[str]:
    yield "| task | calls of operations | heaviest operations: own ms, share of all, calls |"
    yield "|---" * 3 + "|"
    for task, (_, _, operations) in found.items():
        yield f"| {task} | {operations.outermost} | {operations.heaviest(count)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--ops", type=int, default=10, help="heaviest operations to name")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = load_config(str(TINY_CONFIG), [])
    model = build_model(cfg).train()
    optimizer, clock = build_optimizer(cfg, model), Clock(model)
    found = {}
    for task in cfg.TASKS.NAMES:
        batches = iter(build_task_train_loader(cfg, task))
        found[task] = measure(model, optimizer, clock, batches, task, args.repeats)
    for table in (table_of_parts(found), table_of_operations(found, args.ops)):
        print("\n".join(table), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
