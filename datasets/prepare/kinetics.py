"""Checks the files of Kinetics-400: its tables, and which of their clips are there.

    python datasets/prepare/kinetics.py [--root DIR]

The archives of the clips are many and large, so they are unpacked by hand. A clip may be missing, as many videos are no
longer published. The names of those that are missing are written beside the tables.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from common import Folders, Missing, arguments, run

PLACE = "https://github.com/cvdfoundation/kinetics-dataset"
FOLDER = "kinetics400"
SIZES = {"train": "about 370 GB", "val": "about 30 GB"}


def prepare(folders: Folders, options) -> str:
    told, problems = [], []
    for split, size in SIZES.items():
        try:
            told.append(_check(folders.root / FOLDER, split, size))
        except Missing as missing:
            problems.append(str(missing))
    if problems:
        raise Missing("\n".join(problems))
    return f"Kinetics-400 is there; {'; '.join(told)}; check it with: python datasets/check.py kinetics400_val"


def _check(folder: Path, split: str, size: str) -> str:
    """How many clips of a split are there, in words. Raises :class:`Missing` without its table, or without any clip."""
    table, clips = folder / "annotations" / f"{split}.csv", folder / split
    if not table.exists():
        raise Missing(f"{table} is not there; expected {split}.csv of {PLACE}")
    names = list(_names(table))
    missing = [name for name in names if not ((clips / name).is_dir() or (clips / f"{name}.mp4").exists())]
    if len(missing) == len(names):
        raise Missing(
            f"no clip of {table} is in {clips}; expected the files of the archives {split}/part_*.tar.gz ({size}), "
            f"from {PLACE}: unpack each by tar -xzf part_0.tar.gz -C {clips}"
        )
    listed = folder / "annotations" / f"missing_{split}.txt"
    listed.write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")
    return f"{split} has {len(names) - len(missing):,} of {len(names):,} clips, {listed} names the others"


def _names(table: Path) -> Iterator[str]:
    """The names of a table's clips, without the ending of their files."""
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                yield f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{table}: {row} is no clip of Kinetics ({type(error).__name__}: {error})") from error


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
