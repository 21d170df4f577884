"""Ours beside a peer: times and memory of the same work, what the machine reaches, and one table of both.

A benchmark program is a generator of rows and a call of :func:`main`, which reads the options and prints the table:

    def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
        yield harness.compare("a thing", ours, peer, peer_name="its peer", at_least=3.0)

    if __name__ == "__main__":
        harness.main(__doc__, rows)

The two run in turn in one process (ours, peer, peer, ours, ...), so that a machine that slows down slows both. The
ratio is the median of the pairs' ratios, and the quartiles say how far it can be trusted.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from operations import Operations
from peak_memory import peak_memory

Work = Callable[[], object]
MIB = 2**20
HEADER = (
    "| what | against | ours ms | peer ms | ratio (quartiles) | target | met | GFLOP/s, share | GB/s, share |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Settings:
    """How everything is measured; :func:`main` fills it from the options.

    Attributes:
        device: where the work runs; on "cuda" times come from events.
        budget: seconds a row may take, its warm-up aside. A pair that is longer is run once.
        clock: seconds from some start; ``time.process_time`` where neighbours are busy on the same machine.
        profile: whether stderr is told both sides' heaviest operations.
    """

    device: str = "cpu"
    budget: float = 6.0
    clock: Callable[[], float] = time.perf_counter
    profile: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


settings = Settings()


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name, peer_name: what is measured, and against what.
        unit: "ms", or "MiB" for a row of memory.
        ours, peer: medians in that unit.
        ratio, lower, upper: median and quartiles of the pairs' ratios: peer / ours, "how many times faster", unless
            the target is ``at_most``; then ours / peer, "how many times as much".
        at_least, at_most: the target of the ratio; at most one of them.
        gflops, gbytes: a second, of ours; 0 if not told.
        gflops_share, gbytes_share: of what the machine reaches (:func:`machine_peak`).
        dtype: of the matrix product to which ours is held.
        pairs: how many were measured.
    """

    name: str
    peer_name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    lower: float
    upper: float
    at_least: float | None = None
    at_most: float | None = None
    gflops: float = 0.0
    gbytes: float = 0.0
    gflops_share: float = 0.0
    gbytes_share: float = 0.0
    dtype: str = "float32"
    pairs: int = 1

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches its target; None without one."""
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return None if self.at_most is None else self.ratio <= self.at_most

    def markdown(self) -> str:
        """The row as a line below :data:`HEADER`."""
        targets = {"≥": self.at_least, "≤": self.at_most}
        target = " ".join(f"{sign} {value:g}" for sign, value in targets.items() if value is not None)
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        unit = "" if self.unit == "ms" else f" {self.unit}"
        rates = [
            f"{rate:.3g}, {share:.0%}{label}" if rate else ""
            for rate, share, label in (
                (self.gflops, self.gflops_share, "" if self.dtype == "float32" else f" of {self.dtype}"),
                (self.gbytes, self.gbytes_share, ""),
            )
        ]
        ratio = f"{self.ratio:.2f} ({self.lower:.2f} to {self.upper:.2f})"
        cells = (self.name, self.peer_name, _short(self.ours) + unit, _short(self.peer) + unit, ratio, target, met)
        return "| " + " | ".join((*cells, *rates)) + " |"


@dataclass
class Report:
    """What one program found, as it stands in its JSON file."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        found = json.loads(Path(path).read_text())
        return cls(found["machine"], [Row(**row) for row in found["rows"]])


def compare(
    name: str,
    ours: Work,
    peer: Work,
    *,
    peer_name: str,
    at_least: float | None = None,
    at_most: float | None = None,
    flops: float = 0.0,
    moved: float = 0.0,
    dtype: torch.dtype = torch.float32,
    warm_up: bool = True,
) -> Row:
    """Time two callables of one repetition each, in turn.

    Args:
        name, peer_name: how they are called in the table.
        ours, peer: what is run; both are run once before anything is timed.
        at_least: peer's time / ours must reach it.
        at_most: ours / peer's time must not pass it.
        flops: of ours, 2 for a multiplication with its addition.
        moved: bytes that ours has to read and write at the least.
        dtype: of the matrix product with which ours' flops are compared.
        warm_up: False for minutes of plain Python, where a first run is as good as any; then one pair is run.
    """
    gc.collect()
    pair, calls = 0.0, 1
    if warm_up:
        for work in (ours, peer, ours, peer):
            seconds = elapsed(work, 1)
            pair, calls = (pair + seconds / 2, max(calls, _calls_within(2e-3, seconds)))
    pairs = 1 if not warm_up or pair > settings.budget else max(3, min(100, int(settings.budget / (calls * pair))))
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for index in range(pairs):
        if pair > 0.05:  # what the garbage of long work takes of memory matters, and collecting it takes little beside
            gc.collect()
        order = [("ours", ours), ("peer", peer)]
        for kind, work in order if index % 2 == 0 else reversed(order):
            times[kind].append(elapsed(work, calls))
    if settings.profile:
        for side, work in (("ours", ours), (peer_name, peer)):
            found = Operations.of_work(work)
            print(f"{name}, {side}: {found.outermost} calls; {found.heaviest(12)}", file=sys.stderr, flush=True)
    return summarise(
        name,
        times["ours"],
        times["peer"],
        peer_name=peer_name,
        at_least=at_least,
        at_most=at_most,
        flops=flops,
        moved=moved,
        dtype=dtype,
    )


def summarise(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    peer_name: str,
    at_least: float | None = None,
    at_most: float | None = None,
    flops: float = 0.0,
    moved: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Row:
    """The row of times in seconds that were measured pair by pair; see :func:`compare`.

    Raises:
        ValueError: both targets are given.
    """
    if at_least is not None and at_most is not None:
        raise ValueError(f"{name}: at_least and at_most are two rows")
    pairs = list(zip(ours, peer, strict=True))
    ratios = [a / b if at_most is not None else b / a for a, b in pairs]
    lower, middle, upper = statistics.quantiles(ratios * 2 if len(ratios) == 1 else ratios, n=4, method="inclusive")
    seconds = statistics.median(ours)
    gflops, gbytes = flops / seconds / 1e9, moved / seconds / 1e9
    return Row(
        name,
        peer_name,
        "ms",
        1e3 * seconds,
        1e3 * statistics.median(peer),
        middle,
        lower,
        upper,
        at_least,
        at_most,
        gflops,
        gbytes,
        gflops / machine_peak(settings.device, dtype) if flops else 0.0,
        gbytes / machine_peak(settings.device, None) if moved else 0.0,
        str(dtype).removeprefix("torch."),
        len(pairs),
    )


def compare_memory(name: str, ours: Work, peer: Work, *, peer_name: str, at_most: float | None = None) -> Row:
    """Peak memory of two callables that build what they need and run it, above what is in use at their start.

    On a CPU each runs in a forked process of its own, with one thread, and the memory is resident; on a GPU it is what
    is allocated there, in this process.

    Raises:
        RuntimeError: one of them failed.
    """
    mine, other = (peak_memory(work, settings.on_gpu) / MIB for work in (ours, peer))
    ratio = mine / other
    return Row(name, peer_name, "MiB", mine, other, ratio, ratio, ratio, at_most=at_most)


def elapsed(work: Work, calls: int) -> float:
    """Seconds of one call, the mean of ``calls``. The collector of garbage waits until they are over."""
    gc.disable()
    try:
        if settings.on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / calls
        begin = settings.clock()
        for _ in range(calls):
            work()
        return (settings.clock() - begin) / calls
    finally:
        gc.enable()


@functools.cache
def machine_peak(device: str, dtype: torch.dtype | None) -> float:
    """What the machine reaches: GFLOP/s of a large matrix product of a type, or GB/s of a large copy without one.

    A copy counts what it reads and what it writes. The best of several, as nothing but a disturbance makes one slower.
    """
    if dtype is None:
        source = torch.ones(2**28 if device.startswith("cuda") else 2**26, device=device)
        target = torch.empty_like(source)
        amount, work = 2 * source.nbytes, lambda: target.copy_(source)
    else:
        side = 8192 if device.startswith("cuda") else 2048
        left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(left)
        amount, work = 2 * side**3, lambda: torch.mm(left, right, out=product)
    work()
    return amount / min(elapsed(work, 1) for _ in range(5)) / 1e9


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores, threads, versions, GPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return {
        "processor": found.group(1).strip() if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if settings.on_gpu else None,
    }


def has_bf16_instructions(device: str) -> bool:
    """Whether products in bf16 are not emulated: on a GPU, and where Linux names such instructions of the processor."""
    info = Path("/proc/cpuinfo")
    return device.startswith("cuda") or (
        info.exists() and re.search(r"(amx_|512_|\b)bf16\b", info.read_text()) is not None
    )


def main(description: str, rows: Callable[[argparse.Namespace], Iterator[Row]]) -> None:
    """Read the options, run the rows and print them as they come.

    Args:
        description: the program's docstring; its first line is shown by --help.
        rows: given the options (``threads``, ``quick``, ``device``, ``json``), yields the rows.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="shorter, and less trustworthy")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--json", metavar="FILE", help="write the rows here, too")
    parser.add_argument(
        "--process-time", action="store_true", help="the processor's time instead of the clock's: a busy machine"
    )
    parser.add_argument("--profile", action="store_true", help="name both sides' heaviest operations on stderr")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    settings.profile = args.profile
    settings.device, settings.budget = args.device, 1.0 if args.quick else 6.0
    settings.clock = time.process_time if args.process_time else time.perf_counter
    report = Report(machine())
    print(describe(report) + "\n\n" + HEADER, flush=True)
    for row in rows(args):
        report.rows.append(row)
        print(row.markdown(), flush=True)
    report.machine["peaks"] = _peaks(report.rows)
    print("\n" + describe_peaks(report.machine["peaks"]))
    if args.json:
        report.save(args.json)


def describe(report: Report) -> str:
    """One line about the machine."""
    return ", ".join(f"{key} {value}" for key, value in report.machine.items() if value is not None and key != "peaks")


def describe_peaks(peaks: dict[str, float]) -> str:
    """One line about what the shares are of."""
    return "The machine reaches " + ", ".join(f"{value:.4g} {what}" for what, value in peaks.items()) + "."


def _peaks(rows: Sequence[Row]) -> dict[str, float]:
    """What the machine reaches in the types that the rows use; a product in a type that it has no instructions for
    would take minutes."""
    types = {"float32", *(row.dtype for row in rows if row.gflops)}
    peaks = {f"GFLOP/s in {t}": machine_peak(settings.device, getattr(torch, t)) for t in sorted(types, reverse=True)}
    return {**peaks, "GB/s copied": machine_peak(settings.device, None)}


def _calls_within(seconds: float, one: float) -> int:
    """Calls that fill a time a clock measures well, for work that is shorter."""
    return max(1, min(1000, int(seconds / max(one, 1e-9))))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
