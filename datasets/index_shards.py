#!/usr/bin/env python
"""Writes the index of all shards of a dataset into a directory.

    python datasets/index_shards.py --into DIRECTORY "/data/cc12m/*.tar" [--workers 8]

uniperceiver_v2.data.datasets.shard_index says what it is for.
"""

import argparse
import os
import sys

from uniperceiver_v2.data.datasets.shard_index import VARIABLE, write_index
from uniperceiver_v2.data.datasets.shards import entry_of, find_shards
from uniperceiver_v2.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", help="paths or patterns of tars, such as '{00000..00099}.tar'")
    parser.add_argument("--into", required=True, metavar="DIRECTORY")
    parser.add_argument("--workers", type=int, default=1, help="processes that read headers")
    args = parser.parse_args()
    try:
        paths = [path for pattern in args.shards for path in find_shards(pattern)]
        folder = write_index(paths, args.into, entry_of, args.workers)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {len(paths)} shards; set {VARIABLE}={os.path.abspath(args.into)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
