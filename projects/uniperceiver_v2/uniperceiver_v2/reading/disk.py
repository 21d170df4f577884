"""Files read with patience: an error that passes must not change what a run is trained on."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from detectron2.utils.file_io import PathManager

from ..errors import UserError

Result = TypeVar("Result")

WAITS = (0.1, 0.5, 2.0)  # seconds before a read is tried again
LARGEST_FILE = 2**30  # bytes of a file that is read at once

# Errors that belong to a path or a file and stay: no such file, no right to read it, a folder, ... All others, such as
# EIO, ESTALE, ETIMEDOUT or EMFILE, come from the disk, the network or the machine, and may be gone a moment later.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
        errno.ENODEV,
        errno.EILSEQ,
    }
)


def patiently(read: Callable[[], Result], path: str) -> Result:
    """``read()``, called again after a short wait where the system reports an error that may pass.

    Args:
        read: reads from ``path``.
        path: for the message.

    Raises:
        OSError: of the file itself, such as a file that is not there.
        UserError: the error did not pass; a run has to end then, as a sample left out for it would change what is
            trained on from run to run.
    """
    for wait in WAITS:
        try:
            return read()
        except OSError as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    try:
        return read()
    except OSError as error:
        if not _may_pass(error):
            raise
        name = errno.errorcode.get(error.errno, "unknown")
        raise UserError(
            f"{os.path.abspath(path)} cannot be read: {os.strerror(error.errno)} (errno {error.errno}, {name}), "
            f"{len(WAITS) + 1} times in a row; the disk, the network or the machine is at fault, not the file. "
            "--resume goes on once it is mended"
        ) from error


def _may_pass(error: OSError) -> bool:
    """Whether an error is the system's (a library's OSErrors have no number) and not the file's own."""
    return error.errno is not None and error.errno not in _OF_THE_FILE


def read_file(path: str) -> bytes:
    """The content of a file, by a path or what else ``PathManager`` opens.

    Raises:
        OSError, UserError: as :func:`patiently`.
        ValueError: it is no regular file, which might never end, or larger than ``LARGEST_FILE``.
    """
    return patiently(lambda: _read(path), path)


def _read(path: str) -> bytes:
    with contextlib.suppress(FileNotFoundError):  # a path that only PathManager knows
        # Before it is opened: to open a named pipe waits for somebody to write into it.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"is {'a folder' if stat.S_ISDIR(mode) else 'a pipe, a socket or a device'}, not a file")
    with PathManager.open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"has more than {LARGEST_FILE} bytes")
    return content
