"""Reads files with retries, so that a temporary error does not change the data that a run is trained on."""

import errno
import io
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import IO, TextIO, TypeVar
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager

from ..errors import UserError

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class DiskFault(UserError):
    """A file cannot be read, and its content is not the reason."""


# Seconds before each retry: 0.1, 0.2, ... 6.4, 10, 10, ..., a minute in all, as a file server that takes over from
# another one is away for 30 to 60 seconds.
WAITS = tuple(min(0.1 * 2**number, 10.0) for number in range(12))
LARGEST_FILE = 2**30  # bytes; larger files are refused

# Permanent errors of a path or a file: it does not exist, may not be read, is a folder, ... All other errors, such as
# EIO, ESTALE, ETIMEDOUT or EMFILE, come from the disk, the network or the machine, and may be temporary.
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
    """Call ``read()``, and retry for a minute if the system reports an error that may be temporary.

    Args:
        read: a function that reads from ``path``.
        path: the path, for messages.

    Raises:
        OSError: the error is permanent, for example a missing file.
        DiskFault: the error did not go away. The run has to end then. If it left the sample out instead, the training
            data would differ from run to run.
    """
    for wait in WAITS:
        try:
            return read()
        except OSError as error:
            if not _may_pass(error):
                raise
            if wait > 1:
                logger.warning("%s cannot be read (%s): trying again in %.0f s", path, error, wait)
        time.sleep(wait)
    try:
        return read()
    except OSError as error:
        if not _may_pass(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        if error.errno is not None:
            name = errno.errorcode.get(error.errno, "unknown")
            reason = f"{os.strerror(error.errno)} (errno {error.errno}, {name})"
        raise DiskFault(
            f"{os.path.abspath(path)} cannot be read: {reason}, "
            f"{len(WAITS) + 1} times in {sum(WAITS):.0f} seconds; "
            "the disk, the network or the machine is at fault, not the file. --resume goes on once it is mended"
        ) from error


def _may_pass(error: OSError) -> bool:
    """Whether an error may be temporary: time limits and broken connections, and errors of the system that are not
    among the permanent ones. Other errors of libraries have no number, and come from the content of a file."""
    if error.errno is None:
        return isinstance(error, (TimeoutError, ConnectionError))
    return error.errno not in _OF_THE_FILE


def read_file(path: str) -> bytes:
    """The content of a file, by a path or anything else that ``PathManager`` opens.

    Raises:
        OSError, UserError: as :func:`patiently`.
        ValueError: it is not a regular file, and might never end, or it is larger than ``LARGEST_FILE``.
    """
    return patiently(lambda: _read(path), path)


def _read(path: str) -> bytes:
    with open_file(path) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"has more than {LARGEST_FILE} bytes")
    return content


def open_file(path: str) -> IO[bytes]:
    """A regular file, open for reading, by a path or anything else that ``PathManager`` opens.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file, and might never end, or it is an address with "..".
    """
    require_file(path)
    require_no_way_up(path)
    return PathManager.open(path, "rb")


def open_text(path: str) -> TextIO:
    """As :func:`open_file`, for a text in UTF-8 of any length."""
    return io.TextIOWrapper(open_file(path), encoding="utf-8")


def require_file(path: str, *, or_folder: bool = False) -> None:
    """Refuse what is there and is no regular file, before it is opened: opening a named pipe waits for a writer.

    Raises:
        FileNotFoundError: the path has a null character, which no file's has.
        ValueError: it is a pipe, a socket or a device, or a folder where ``or_folder`` is False.
    """
    if "\0" in path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:  # or only PathManager knows this path
        return
    if not stat.S_ISREG(mode) and not (or_folder and stat.S_ISDIR(mode)):
        raise ValueError(f"is {'a folder' if stat.S_ISDIR(mode) else 'a pipe, a socket or a device'}, not a file")


def require_no_way_up(path: str) -> None:
    """Refuse an address with ".." among its parts. ``PathManager`` keeps what it fetches in a folder, by the address's
    parts, so that it would write outside of this folder.

    Raises:
        ValueError: it is such an address, or not an address at all.
    """
    if "://" in path and ".." in urlparse(path).path.split("/"):
        raise ValueError(f"{path} has '..' in it, so that its copy would be written outside of the folder of copies")
