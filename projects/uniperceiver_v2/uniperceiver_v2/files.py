"""Files that are written completely or not at all, and JSON that every parser accepts."""

import contextlib
import glob
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_PACKAGE = Path(__file__).resolve().parent
# The checkout of this code, for programs that are not in the package: studies, benchmarks and tests.
REPOSITORY = _PACKAGE.parents[2]
_SHIPPED = _PACKAGE / "shipped"  # of an installed package: setup.py copies files of the repository there
# How to start training, for messages.
TRAIN = "uniperceiver-v2 train" if _SHIPPED.is_dir() else "python projects/uniperceiver_v2/train_net.py"


def shipped(path: str) -> Path:
    """The place of a file or folder that comes with this code, so that it is found from any working directory.

    Args:
        path: its place in the repository, such as "configs/digit_scenes/text_encoder".
    """
    return (_SHIPPED if _SHIPPED.is_dir() else REPOSITORY) / path


TINY_CONFIG = shipped("configs/digit_scenes/uniperceiver_v2_tiny.yaml")  # the small generalist's


def write_atomically(path: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name with ``write``, and rename it to ``path`` when it is complete.

    Raises:
        OSError: writing failed. After this or any exception of ``write``, ``path`` is unchanged.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    # A separate name for each process: a process of an earlier run whose launcher was killed may still be writing.
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}.tmp")
    for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(os.path.basename(path))}.*.tmp")):
        with contextlib.suppress(OSError):
            os.unlink(left)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Put the names in a folder on the disk. Only then a renaming is there too.

    Raises:
        OSError: it failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str, content: Any) -> None:
    """Write JSON that every parser accepts: NaN and infinity, which JSON does not have, become null."""
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair, as in the name of a file that is no UTF-8, becomes its escape, which JSON knows.
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
