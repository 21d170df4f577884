"""How many detections double a better one.

    python projects/uniperceiver_v2/experiments/duplicates.py [--score 0.3] [--overlap 0.6] RESULTS ...

RESULTS are files in COCO's format of results, such as inference/<dataset>/coco_instances_results.json of a run.
"""

from __future__ import annotations

import argparse
import json

from uniperceiver_v2.evaluation.duplicates import count_duplicates


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", metavar="RESULTS")
    parser.add_argument("--score", type=float, default=0.3, help="detections with lower scores do not count")
    parser.add_argument("--overlap", type=float, default=0.6, help="IoU from which a detection is a duplicate")
    args = parser.parse_args(argv)
    for path in args.results:
        with open(path) as file:
            found = count_duplicates(json.load(file), args.score, args.overlap)
        print(f"{path}: {found.count} of {found.detections} detections are duplicates ({found.percent:.1f}%)")


if __name__ == "__main__":
    main()
