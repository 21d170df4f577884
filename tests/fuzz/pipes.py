"""Named pipes in place of files, of each kind of the campaign: they are refused by name, and nobody waits for a writer.

    python tests/fuzz/pipes.py

It prints each kind with the number of its files, and each finding. The exit code is 1 if there is one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from campaign import KINDS, kind_of
from running import Kind

from uniperceiver_v2.errors import UnreadableImage, UserError

sys.path.pop(0)

MOST_SECONDS = 10  # which a refusal may take


class Waited(BaseException):
    """No Exception, which a reader might take for one of the disk's and try again."""


def wait_no_longer(*_: object) -> None:
    raise Waited


def finding(kind: Kind, path: Path) -> str:
    """What is wrong with how a kind reads a pipe; "" if it is refused, or made anew as the index of a shard."""
    signal.alarm(MOST_SECONDS)
    try:
        kind.read(path, True)  # the manifest of parts is as it was
    except (UserError, UnreadableImage) as error:
        return "" if kind.is_named(path, str(error)) else f"a refusal that does not name the file: {error}"
    except Waited:
        return "it waits for a writer"
    finally:
        signal.alarm(0)
    return "" if ".index." in path.name and path.is_file() else "no refusal"


def main() -> None:
    signal.signal(signal.SIGALRM, wait_no_longer)
    found = 0
    for name in KINDS:
        kind = kind_of(name)
        files = sorted({kind.damaged(random.Random(number)).name for number in range(200)})
        print(name, len(files))
        for file in files:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / file
                os.mkfifo(path)
                if reason := finding(kind, path):
                    found += 1
                    print(f"    {file}: {reason}")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
