"""A start on 100 million pairs in 10,000 shards, simulated: time, memory and the cost of the order.

    python projects/uniperceiver_v2/benchmarks/many_shards.py [--shards 10000 --pairs 10000]

The index of all shards is a sparse file here, which has the size of a real one and no content. The headers of one tar
are real, its images are holes in the file. Prints a Markdown table with what one process needs:

- "headers": to find the pairs of one shard in its tar, which the offline command does once for each.
- "start": to load the index of all shards. Beside it, to load 200 indices that lie beside their shards, scaled to all.
- "memory": what the start adds to the process.
- "draw": the mean time of the order for a sample, of 100,000 samples that follow each other, and the longest.
- "row": to find a record's place in its shard.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from peak_memory import own_memory

from uniperceiver_v2.data.datasets import shard_index, shards

FILES = (("jpg", 30_000), ("json", 400), ("txt", 60))  # of a pair, with bytes
DRAWS = 100_000
BESIDE = 200


def write_headers(path: Path, pairs: int) -> None:
    """A tar with holes in the place of contents."""
    with open(path, "wb") as file:
        for number in range(pairs):
            for suffix, size in FILES:
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = size
                file.write(member.tobuf())
                file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)


def write_sparse_index(folder: Path, paths: list[str], pairs: int) -> None:
    folder.mkdir(parents=True)
    listed = [[path, 10**9, 0, pairs] for path in paths]
    (folder / "shards.json").write_text(json.dumps({"version": 1, "key_width": 9, "shards": listed}))
    for name, width in (("members", 32), ("keys", 9)):
        with open(folder / name, "wb") as file:
            file.truncate(len(paths) * pairs * width)


def milliseconds(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return 1000 * (time.perf_counter() - start), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "00000.tar"
        write_headers(tar, args.pairs)
        of_headers, (keys, members) = milliseconds(lambda: shards.entry_of(str(tar))[3:])
        assert len(keys) == len(members) == args.pairs

        beside = Path(folder) / "beside.npz"
        np.savez(beside, stamp=np.zeros(3, dtype=np.int64), keys=keys, members=members)
        before = own_memory()
        of_beside, kept = milliseconds(lambda: [dict(np.load(beside)) for _ in range(BESIDE)])
        scale = args.shards / BESIDE
        of_beside, memory_beside = of_beside * scale, (own_memory() - before) * scale
        del kept

        paths = [f"/data/web/{number:05d}.tar" for number in range(args.shards)]
        write_sparse_index(shard_index.folder_of(paths, folder), paths, args.pairs)
        os.environ[shard_index.VARIABLE] = folder
        before = own_memory()
        of_start, records = milliseconds(lambda: shards._load_pairs(paths))
        memory = own_memory() - before
        order = records.order("web_pairs", 0)
        times = [milliseconds(lambda p=position: order.index_at(p))[0] for position in range(DRAWS)]
        index = [order.index_at(position) for position in range(1000)]
        of_rows, _ = milliseconds(lambda: [shard.members[at].tolist() for shard, at in map(records.place_of, index)])
        of_order = own_memory() - before - memory
    print("| | one array | an index beside each shard |\n|---|---:|---:|")
    print(f"| headers of a shard, s | {of_headers / 1000:.2f} | {of_headers / 1000:.2f} |")
    print(f"| start, s | {of_start / 1000:.2f} | {of_beside / 1000:.1f} |")
    print(f"| memory, MiB | {memory / 2**20:.0f} | {memory_beside / 2**20:.0f} |")
    print(f"| draw, µs: mean / longest | {1000 * sum(times) / DRAWS:.1f} / {1000 * max(times):.0f} | the same |")
    print(f"| memory of the order, MiB | {of_order / 2**20:.0f} | the same |")
    print(f"| row, µs | {of_rows:.1f} | |")


if __name__ == "__main__":
    main()
