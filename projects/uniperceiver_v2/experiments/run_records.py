"""What stays of the runs of a study, so that another machine goes on where this one stopped.

Every run has a folder below records/<study>/<split>/. Its report (run.json) and its log (log.jsonl.gz) are committed.
What a run needs on the way, such as its checkpoints, is ignored by git.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniperceiver_v2.data.datasets.builtin import datasets_root
from uniperceiver_v2.files import write_atomically

REPORT = "run.json"  # of a run: its results, its date and its duration
LOG = "log.jsonl.gz"  # of a run: its course
LOG_LINES = 50  # of a run


def records_of(program: str) -> Path:
    """The folder of the runs of a program of this folder."""
    return Path(program).with_name("records") / Path(program).stem


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """A context that tells whether this process may do the run in a folder. The claim ends with the context or the
    process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def keep_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes the report of the run in ``folder``, with today's date."""
    text = json.dumps({**report, "date": time.strftime("%Y-%m-%d")}, indent=1)
    write_atomically(str(folder / REPORT), lambda file: file.write(text.encode()))


def report_of(folder: Path) -> dict[str, Any] | None:
    """The report of the run in ``folder``, or None if it has none."""
    path = folder / REPORT
    return json.loads(path.read_text()) if path.exists() else None


def keep_log(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes the log of the run in ``folder``. Equal lines make equal files."""
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomically(str(folder / LOG), lambda file: file.write(gzip.compress(text, mtime=0)))


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log of the run in ``folder``. It is empty if there is none."""
    path = folder / LOG
    return list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines())) if path.exists() else []


def rows_of(metrics: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.json, which also has those from before an interruption. A young run has no such file
    yet."""
    return list(map(json.loads, metrics.read_text().splitlines())) if metrics.exists() else []


def minutes_of(rows: Sequence[Mapping[str, float]]) -> float:
    """The duration of training, without evaluation."""
    iterations = itertools.pairwise([-1, *(row["iteration"] for row in rows)])
    return sum((last - first) * row.get("time", 0.0) for (first, last), row in zip(iterations, rows)) / 60


def course(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The losses and accuracies in ``LOG_LINES`` lines or less, with means of three digits."""
    ends = sorted({-(-len(rows) * line // LOG_LINES) for line in range(LOG_LINES + 1)})
    return [_mean_row(rows[first:end]) for first, end in itertools.pairwise(ends)]


def _mean_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kept = sorted({key for row in rows for key in row if "/" in key and ("loss" in key or "accuracy" in key)})
    values = {key: [row[key] for row in rows if key in row] for key in kept}
    means = {key: float(f"{sum(found) / len(found):.3g}") for key, found in values.items()}
    return {"iteration": rows[-1]["iteration"], **means}


def split_of_data() -> str:
    """ "development" or "test": what the test files of the data are made of."""
    manifest = json.loads((Path(datasets_root()) / "digit_scenes" / "manifest.json").read_text())
    return "development" if manifest["arguments"].get("development") else "test"
