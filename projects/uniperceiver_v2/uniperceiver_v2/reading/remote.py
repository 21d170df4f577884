"""Files of object storage, such as s3://pairs/00000.tar, by copies in a folder of limited size.

fsspec reads them, with its package for each kind of storage (s3fs, gcsfs, ...). A shard is copied as a whole when it is
first read: an epoch reads all of a shard's records while a few shards are open (``ShardOrder``), so a copy serves
thousands of reads. ``UNIPERCEIVER_V2_CACHE`` is the folder, which the processes of a machine share, and
``UNIPERCEIVER_V2_CACHE_GB`` its limit.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

_FOLDER, _LIMIT = "UNIPERCEIVER_V2_CACHE", "UNIPERCEIVER_V2_CACHE_GB"
_DEFAULT_FOLDER, _DEFAULT_GB = "~/.cache/uniperceiver_v2/files", "100"


def is_remote(path: str) -> bool:
    """Whether a path is that of a storage, such as s3://bucket/name."""
    return "://" in path


def find_remote(pattern: str) -> list[str]:
    """The paths of a storage that fit a pattern, as for glob, in order."""
    storage, inside = _storage_of(pattern)
    return sorted(storage.unstrip_protocol(path) for path in storage.glob(inside))


def remote_stamp(path: str) -> tuple[int, int]:
    """The size of a file in bytes, and a number that is another one when the file has changed."""
    storage, inside = _storage_of(path)
    information = storage.info(inside)
    # Of all that storages tell, these stay while a file does: others are the time of the question, or of a link.
    told = [str(information.get(key)) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")]
    digest = hashlib.blake2b(repr(told).encode(), digest_size=8).digest()
    return int(information["size"]), int.from_bytes(digest, "little") >> 1


def open_copy(path: str, stamp: tuple[int, int]) -> IO[bytes]:
    """The local copy of a file, unbuffered. It is made if it is not there.

    Args:
        path: of the storage.
        stamp: :func:`remote_stamp` of the file that is expected.

    Raises:
        UserError: the file is another one now, or larger than the limit of the folder.
        OSError: the storage or the disk is at fault.
    """
    folder = Path(os.environ.get(_FOLDER, _DEFAULT_FOLDER)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / hashlib.blake2b(repr((path, *stamp)).encode(), digest_size=16).hexdigest()
    while True:
        with contextlib.suppress(FileNotFoundError):  # another process may remove it to make room
            file = open(copy, "rb", buffering=0)  # noqa: SIM115
            os.utime(copy, ns=(time.time_ns(),) * 2)  # the last use, finer than the system's own time of a file
            return file
        with _locked(copy):
            if not copy.exists():
                _fetch(path, stamp, copy)


def _fetch(path: str, stamp: tuple[int, int], copy: Path) -> None:
    if remote_stamp(path) != tuple(stamp):
        raise UserError(f"{path} is another file than its index says; make the index anew")
    _make_room(copy.parent, stamp[0], path)
    part = copy.with_suffix(".part")
    storage, inside = _storage_of(path)
    try:
        storage.get_file(inside, str(part))
        if part.stat().st_size != stamp[0]:
            raise TimeoutError(f"{path}: only {part.stat().st_size} of {stamp[0]} bytes have come")
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


def _make_room(folder: Path, size: int, path: str) -> None:
    """Remove the copies that have not been used for longest. Who has one open reads on."""
    limit = float(os.environ.get(_LIMIT, _DEFAULT_GB)) * 1e9
    if size > limit:
        raise UserError(f"{path} has {size} bytes, more than {_LIMIT} ({limit / 1e9:g}) allows")
    copies = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if not entry.name.endswith((".lock", ".part")):
                copies.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    total = size + sum(held for _, held, _ in copies)
    for _, freed, oldest in sorted(copies):
        if total <= limit:
            break
        with contextlib.suppress(FileNotFoundError):
            os.remove(oldest)
        total -= freed


@contextlib.contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """One process at a time fetches a file."""
    with open(copy.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _storage_of(path: str) -> tuple[Any, str]:
    import fsspec  # it comes with PyTorch

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # its package is not installed, or no storage has this name
        raise UserError(f"{path} cannot be read: {error}") from error
