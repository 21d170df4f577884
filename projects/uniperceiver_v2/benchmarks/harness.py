"""Measures our code beside a peer: time and memory of the same work, the machine's limits, and a table of the results.

A benchmark program is a generator of rows and a call of :func:`main`, which reads the options and prints the table:

    def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
        yield harness.compare("a thing", ours, peer, peer_name="its peer", at_least=3.0)

    if __name__ == "__main__":
        harness.main(__doc__, rows)

The two sides alternate in one process (ours, peer, peer, ours, ...). So a machine that becomes slower slows both. The
ratio is the median of the pairs' ratios. The quartiles show how reliable it is.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from operations import Operations
from peak_memory import peak_memory, trim

Work = Callable[[], object]
MIB = 2**20
HEADER = (
    "| what | against | ours ms | peer ms | ratio (quartiles) | target | met | GFLOP/s, share | GB/s, share |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Settings:
    """Settings of all measurements. :func:`main` sets them from the options.

    Attributes:
        device: the device of the work. On "cuda" times come from events.
        budget: the seconds that a row may take, without its warm-up. If a single pair takes longer, it is run once.
        clock: a clock in seconds. :func:`processor_time` suits a machine on which other programs run.
        profile: whether the heaviest operations of both sides are printed on stderr.
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
        name, peer_name: the measured work, and the work that it is compared with.
        unit: "ms", or "MiB" for a row of memory.
        ours, peer: the medians of both sides in that unit.
        ratio, lower, upper: median and quartiles of the pairs' ratios. The ratio is peer / ours ("how many times
            faster"). With the target ``at_most`` it is ours / peer ("how many times as much").
        at_least, at_most: the target of the ratio. Only one of them may be given.
        gflops, gbytes: our GFLOP/s and GB/s; 0 if unknown.
        gflops_share, gbytes_share: their shares of the machine's peak (:func:`machine_peak`).
        dtype: the dtype of the matrix product that gives the machine's peak.
        pairs: the number of measured pairs.
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
        """Whether the ratio reaches its target. None without a target."""
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
    """The results of one program, as in its JSON file."""

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
    fresh: bool = False,
) -> Row:
    """Time two callables in turn. Each call is one repetition of the work.

    Args:
        name, peer_name: the names of both sides in the table.
        ours, peer: the work of both sides. With ``warm_up`` both run twice before the measured pairs.
        at_least: the target: the peer's time / our time is at least this.
        at_most: the target: our time / the peer's time is at most this.
        flops: the operations of our side. A multiplication with its addition counts 2.
        moved: the bytes that our side has to read and write at least.
        dtype: the dtype of the matrix product with which our flops are compared.
        warm_up: False for work that takes minutes in plain Python, for which a first run is representative. Then one
            pair is run, without a warm-up.
        fresh: each call finds no freed memory of earlier ones, as in a program that has just started. Else whoever runs
            later has the pages that the other one has brought in.
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
        if pair > 0.05:  # the garbage of long work takes memory, and collecting it takes little time beside the work
            gc.collect()
        order = [("ours", ours), ("peer", peer)]
        for kind, work in order if index % 2 == 0 else reversed(order):
            if fresh:
                trim()
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
    """The row of times in seconds that were measured in pairs, see :func:`compare`.

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
    """Peak memory of two callables above the memory in use at their start. A callable builds its inputs and does the
    work.

    On a CPU each runs in a forked process with one thread, and the memory is resident memory. On a GPU it is the memory
    allocated in this process.

    Raises:
        RuntimeError: one of them failed.
    """
    mine, other = (peak_memory(work, settings.on_gpu) / MIB for work in (ours, peer))
    ratio = mine / other
    return Row(name, peer_name, "MiB", mine, other, ratio, ratio, ratio, at_most=at_most)


def elapsed(work: Work, calls: int) -> float:
    """Seconds of one call, as the mean of ``calls``. Garbage collection is off during the calls."""
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


def processor_time() -> float:
    """Seconds that the processor has worked for this process and for those that it started and waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@functools.cache
def machine_peak(device: str, dtype: torch.dtype | None) -> float:
    """The machine's peak: GFLOP/s of a large matrix product of a dtype, or with ``dtype`` None, GB/s of a large copy.

    A copy counts the bytes that it reads and the bytes that it writes. The result is the best of several runs, as
    disturbances can only make a run slower.
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
    """The machine of the measurements: processor, cores, threads, versions, GPU."""
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
    """Whether the device has instructions for products in bf16. True for a GPU, and for a processor if Linux lists
    such instructions."""
    info = Path("/proc/cpuinfo")
    return device.startswith("cuda") or (
        info.exists() and re.search(r"(amx_|512_|\b)bf16\b", info.read_text()) is not None
    )


def main(description: str, rows: Callable[[argparse.Namespace], Iterator[Row]]) -> None:
    """Read the options, run the rows and print them as they come.

    Args:
        description: the program's docstring. --help shows its first line.
        rows: a generator of rows. Its argument is the options (``threads``, ``quick``, ``device``, ``json``).
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
    settings.clock = processor_time if args.process_time else time.perf_counter
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
    """One line about the peaks that shares are relative to."""
    return "The machine reaches " + ", ".join(f"{value:.4g} {what}" for what, value in peaks.items()) + "."


def _peaks(rows: Sequence[Row]) -> dict[str, float]:
    """The machine's peaks in the dtypes of the rows. Others are not measured, as a product in a dtype without
    instructions takes minutes."""
    types = {"float32", *(row.dtype for row in rows if row.gflops)}
    peaks = {f"GFLOP/s in {t}": machine_peak(settings.device, getattr(torch, t)) for t in sorted(types, reverse=True)}
    return {**peaks, "GB/s copied": machine_peak(settings.device, None)}


def _calls_within(seconds: float, one: float) -> int:
    """The number of calls of duration ``one`` that take ``seconds``, which is long enough for a clock."""
    return max(1, min(1000, int(seconds / max(one, 1e-9))))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
