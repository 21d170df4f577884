"""An index of all shards of a dataset in a directory of its own, made offline.

    python datasets/index_shards.py --into DIRECTORY "/data/cc12m/*.tar" [--workers 8]

Without it, each shard has its index beside it, which a read-only disk does not take, and every process reads all of
them when it starts. Here one array has the places of all pairs. It is mapped into memory, so that the processes of a
machine share what they have looked at, and a start reads only the list of shards. The environment variable
``UNIPERCEIVER_V2_SHARD_INDICES`` names the directory, in which several datasets may have their indices.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError

logger = logging.getLogger(__name__)

VARIABLE = "UNIPERCEIVER_V2_SHARD_INDICES"
_VERSION = 1


class Entry(NamedTuple):
    """A shard in an index. Keys and members are those of :class:`~.shards.Shard`."""

    path: str
    size: int  # bytes
    modified: int  # nanoseconds
    keys: np.ndarray
    members: np.ndarray


def folder_of(paths: Sequence[str], directory: str) -> Path:
    """The folder in a directory of indices that is for shards at these paths."""
    named = hashlib.blake2b("\n".join(paths).encode(), digest_size=8).hexdigest()
    return Path(directory) / f"{Path(paths[0]).parent.name}-{named}"


def write_index(paths: Sequence[str], directory: str, read: Callable[[str], Entry], workers: int = 1) -> Path:
    """Read the headers of all shards and write their index into its folder, which is returned.

    The folder appears when it is complete. An index of the same shards that is there already is replaced.

    Args:
        paths: of the shards.
        directory: of indices.
        read: a shard's path -> its entry. Its errors are raised here.
        workers: the number of processes that read.

    Raises:
        OSError: a file cannot be read, or the folder cannot be written.
    """
    folder = folder_of(paths, directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        with multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else contextlib.nullcontext() as pool:
            found = map(read, paths) if pool is None else pool.imap(read, paths, chunksize=4)
            _write(made, found)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def _write(folder: Path, found: Iterable[Entry]) -> None:
    """Write one shard after the other, so that no more than one is in memory."""
    shards, widths = [], []
    with open(folder / "members.raw", "wb") as members_file, open(folder / "keys.raw", "wb") as keys_file:
        for path, size, modified, keys, members in found:
            shards.append([path, size, modified, len(keys)])
            widths.append(keys.dtype.itemsize)
            members.astype("<i8").tofile(members_file)
            keys.tofile(keys_file)
    pairs = sum(count for *_, count in shards)
    # Keys get one width, when that of the longest is known. A key may have any bytes, line breaks among them.
    width = max([1, *widths])
    keys = np.memmap(folder / "keys", dtype=f"S{width}", mode="w+", shape=(max(1, pairs),))
    with open(folder / "keys.raw", "rb") as keys_file:
        end = 0
        for (*_, count), of_shard in zip(shards, widths, strict=True):
            keys[end : end + count] = np.fromfile(keys_file, dtype=f"S{of_shard}", count=count)
            end += count
    keys.flush()
    os.remove(folder / "keys.raw")
    os.replace(folder / "members.raw", folder / "members")
    (folder / "shards.json").write_text(json.dumps({"version": _VERSION, "key_width": width, "shards": shards}))


def indexed(paths: Sequence[str]) -> list[Entry] | None:
    """The shards at these paths by their index. None without an index of them.

    Whether a shard is still the same file is seen when it is opened, so that a start touches none of them.

    Raises:
        UserError: the index is damaged.
    """
    directory = os.environ.get(VARIABLE, "")
    return _load(folder_of(paths, directory)) if directory and paths else None


@functools.cache  # tasks with the same shards share them
def _load(folder: Path) -> list[Entry] | None:
    if not folder.is_dir():
        logger.warning("%s has no index of these shards: %s is missing", folder.parent, folder.name)
        return None
    try:
        content = json.loads((folder / "shards.json").read_text())
        counts = np.array([shard[3] for shard in content["shards"]], dtype=np.int64)
        pairs = int(counts.sum())
        members = np.memmap(folder / "members", dtype="<i8", mode="r").reshape(pairs, 4).view(np.ndarray)
        keys = np.memmap(folder / "keys", dtype=f"S{content['key_width']}", mode="r").view(np.ndarray)
        if content["version"] != _VERSION or len(keys) != max(1, pairs) or (counts < 0).any():
            raise ValueError("its parts do not fit each other")
    except (OSError, ValueError, LookupError, TypeError) as error:
        command = __doc__.splitlines()[2].strip()
        raise UserError(f"the index of shards in {folder} is damaged ({error}); make it anew: {command}") from error
    ends = np.cumsum(counts)
    return [
        Entry(path, size, modified, keys[end - count : end], members[end - count : end])
        for (path, size, modified, count), end in zip(content["shards"], ends.tolist(), strict=True)
    ]
