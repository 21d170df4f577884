"""Keeps the results and the course of a finished run of train_net.py among the records.

    python projects/uniperceiver_v2/experiments/keep_run.py output/digit_scenes_tiny make_train 0

The run's folder below records/<name>/<split>/ is named by the seed. Runs of `make train` fill a column of
docs/specialists.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from run_records import course, keep_log, keep_report, minutes_of, records_of, rows_of, split_of_data


def main(arguments: list[str] | None = None) -> Path:
    """The program. Returns the folder of the records.

    Raises:
        SystemExit: the run is of another seed.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("name", help="of the records")
    parser.add_argument("seed", type=int)
    parser.add_argument("--records", type=Path, default=records_of(__file__).parent)
    args = parser.parse_args(arguments)
    seed = yaml.safe_load((args.run / "config.yaml").read_text())["SEED"]
    if seed != args.seed:
        raise SystemExit(f"error: {args.run / 'config.yaml'} has SEED {seed}, not {args.seed}")
    rows, results = rows_of(args.run / "metrics.json"), json.loads((args.run / "results.json").read_text())
    folder = args.records / args.name / split_of_data() / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    keep_log(folder, course(rows))
    keep_report(folder, {"minutes": minutes_of(rows), "results": results})
    return folder


if __name__ == "__main__":
    main()
