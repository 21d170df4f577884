"""All benchmarks against their targets, as one table. Every program runs in its own process, one after another.

    python projects/uniperceiver_v2/benchmarks/bench.py [--only optimizer criterion] [--quick] [--device cuda]

The rows of a program are printed when it ends. If a program fails, the last line names it and the exit code is 1. A
missed target is a result and not a failure.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

PROGRAMS = (
    "deformable_attention",
    "deformable_attention_gpu",  # has rows only on a GPU
    "image_encoder",
    "criterion",
    "conditional_moe",
    "optimizer",
    "generation",
    "candidates",
    "retrieval_ranks",
    "coco_evaluation",
    "training_iteration",
    "data_loading",
    "reading_checks",
    "predictor",
    "export",
)


def run(program: str, options: list[str], folder: Path) -> harness.Report | None:
    """The report of a program beside this file, or None if it failed. The program's own output goes to stderr."""
    start, result = time.perf_counter(), folder / f"{program}.json"
    command = [sys.executable, str(Path(__file__).with_name(f"{program}.py")), *options, "--json", str(result)]
    code = subprocess.run(command, stdout=sys.stderr).returncode
    print(f"{program}: {time.perf_counter() - start:.0f} s, exit code {code}", file=sys.stderr, flush=True)
    return harness.Report.load(result) if code == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Other options go to each program.")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, metavar="PROGRAM")
    parser.add_argument("--json", metavar="FILE", help="write all rows here, too")
    args, options = parser.parse_known_args()
    print(harness.HEADER, flush=True)
    reports: list[harness.Report] = []
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for program in args.only:
            report = run(program, options, Path(folder))
            if report is None:
                failed.append(program)
                continue
            reports.append(report)
            print("\n".join(row.markdown() for row in report.rows), flush=True)
    if reports:
        whole = harness.Report(dict(reports[0].machine), [row for report in reports for row in report.rows])
        kinds = reports[0].machine["peaks"]
        peaks = {kind: statistics.median(report.machine["peaks"][kind] for report in reports) for kind in kinds}
        whole.machine["peaks"] = peaks
        print(f"\n{harness.describe(whole)}\n\n{harness.describe_peaks(peaks)}")
        if args.json:
            whole.save(args.json)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
