"""Prepares a corpus of any size for language modelling: text shards with one passage on each line.

    python datasets/prepare/corpus.py bookcorpus books_large_p1.txt books_large_p2.txt
    python datasets/prepare/corpus.py wikipedia extracted/ [--words 300] [--passages 100000] [--root DIR]

Sources are text files, or what wikiextractor writes with ``--json``, or folders of them. A passage is made of whole
lines of one document, as many as fit into ``--words``. A longer line is divided. Nothing but a passage is in memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from common import Folders, Missing, arguments, run
from tqdm import tqdm

PLACES = {
    "bookcorpus": "https://github.com/soskek/bookcorpus (the original is no longer offered)",
    "wikipedia": "https://dumps.wikimedia.org/enwiki/, unpacked by `wikiextractor --json --output extracted`",
}


def prepare(folders: Folders, options: argparse.Namespace) -> str:
    missing = [source for source in options.sources if not source.exists()]
    if missing or not options.sources:
        what = missing[0] if missing else folders.root / options.name
        raise Missing(f"{what} is not there; expected texts, from {PLACES[options.name]}")
    if min(options.words, options.passages) < 1:
        raise ValueError("--words and --passages must be positive")
    target = folders.root / options.name
    if any(target.glob("*.txt")):
        return f"{target} has shards already; remove them to write others"
    passages = (passage for document in documents(options.sources) for passage in passages_of(document, options.words))
    shards, count = write_shards(passages, target, options.passages)
    if not count:
        raise ValueError(f"there is no text in {', '.join(map(str, options.sources))}")
    return (
        f"{target}: {count:,} passages in {shards:,} shards; check with: python datasets/check.py {options.name}_train"
    )


def documents(sources: Iterable[Path]) -> Iterator[Iterator[str]]:
    """The lines of each document, in the order of the names of the files."""
    files = [f for s in sources for f in (sorted(p for p in s.rglob("*") if p.is_file()) if s.is_dir() else [s])]
    for path in tqdm(files, desc="sources", unit=" files", disable=None):
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.read(1) != "{":
                file.seek(0)
                yield file
                continue
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    yield iter(json.loads(line)["text"].splitlines())
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise ValueError(f'{path}: line {number} is no JSON with a "text": {line[:60]!r}') from error


def passages_of(lines: Iterable[str], words: int) -> Iterator[str]:
    """Passages of up to so many words, each made of whole lines if they are not longer."""
    passage: list[str] = []
    for line in lines:
        found = line.split()
        if passage and len(passage) + len(found) > words:
            yield " ".join(passage)
            passage = []
        passage += found
        while len(passage) > words:
            yield " ".join(passage[:words])
            passage = passage[words:]
    if passage:
        yield " ".join(passage)


def write_shards(passages: Iterable[str], target: Path, size: int) -> tuple[int, int]:
    """Write ``00000.txt``, ``00001.txt`` and so on of ``size`` lines each. They are there when all are written.

    Returns:
        The numbers of shards and of passages.
    """
    staging = target / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    count, file = 0, None
    try:
        for passage in passages:
            if count % size == 0:
                if file is not None:
                    file.close()
                file = open(staging / f"{count // size:05d}.txt", "w", encoding="utf-8", newline="\n")  # noqa: SIM115
            file.write(passage + "\n")
            count += 1
    finally:
        if file is not None:
            file.close()
    shards = sorted(staging.iterdir())
    for path in shards:
        path.rename(target / path.name)
    staging.rmdir()
    return len(shards), count


if __name__ == "__main__":
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("name", choices=PLACES)
    parser.add_argument("sources", nargs="*", type=Path, help="text files, wikiextractor's JSON, or folders of them")
    parser.add_argument("--words", type=int, default=300, help="of a passage at most (default: 300)")
    parser.add_argument("--passages", type=int, default=100_000, help="of a shard (default: 100,000)")
    run(parser, prepare)
