"""train_net.py on a disk that fails: images cannot be read for a while, or one of them never.

    FAILURES=failures.txt python tests/faults/failing_disk.py --config-file ...

A quarter of the readings of images begins with one to three failures in a row: EIO while a file is read, or ESTALE when
it is opened. The file that ``FAILURES`` names gets a line for each failure. An image whose name is in ``BROKEN`` always
fails.
"""

from __future__ import annotations

import errno
import io
import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[2] / "projects" / "uniperceiver_v2"))
import train_net
from uniperceiver_v2.reading import disk, picture_endings

usual = disk.PathManager
due: dict[str, int] = {}  # failures to come of a reading that has begun, by path
readings: Counter[str] = Counter()


class Unreadable(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def open_or_fail(path: str, mode: str) -> IO[bytes]:
    if not path.endswith(picture_endings()):
        return usual.open(path, mode)
    if os.path.basename(path) == os.environ.get("BROKEN"):
        return fail(path, errno.EIO)
    if path not in due:
        readings[path] += 1
        chance = random.Random(f"{os.path.basename(path)}/{readings[path]}")
        due[path] = chance.choice((1, 2, 3)) if chance.random() < 0.25 else 0
    if due[path] == 0:
        del due[path]
        return usual.open(path, mode)
    due[path] -= 1
    return fail(path, (errno.EIO, errno.ESTALE)[due[path] % 2])


def fail(path: str, number: int) -> IO[bytes]:
    with open(os.environ["FAILURES"], "a") as file:
        file.write(f"{errno.errorcode[number]} {path}\n")
    if number == errno.EIO:
        return Unreadable()
    raise OSError(number, os.strerror(number), path)


if __name__ == "__main__":
    disk.WAITS = (0.1, 0.2, 0.4)
    disk.PathManager = SimpleNamespace(open=open_or_fail)
    sys.exit(train_net.run())
