"""Write a report on a run, with a comparison where several runs are named.

    python -m uniperceiver_v2.report output/RUN [output/OTHER ...] [--output FILE]

The first run is shown in full. Without --output, the report is the file report.html in its folder.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from ..errors import exit_code
from .page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m uniperceiver_v2.report", description="Write a report on a run: one HTML file."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's OUTPUT_DIR; the first is shown in full")
    parser.add_argument("--output", metavar="FILE", help="the HTML file (default: report.html in the first run)")
    options = parser.parse_args(arguments)
    path = options.output or os.path.join(options.runs[0], "report.html")

    def run() -> None:
        write_report(options.runs, path)
        print(path)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
