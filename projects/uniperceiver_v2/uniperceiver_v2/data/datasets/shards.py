"""Image-text pairs from the web: WebDataset shards as img2dataset writes them, with random access.

A shard is a tar with ``<key>.jpg`` (or jpeg, png, webp) and the caption ``<key>.txt`` of each pair. The ``webdataset``
library can only stream shards, in an order that depends on its buffers and on the number of workers. But our batches
are pure functions of their number. So shards are read here by the offsets of their members, which the standard
library's tarfile finds.
"""

import contextlib
import functools
import glob
import logging
import os
import re
import stat
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ...errors import UnreadableImage, UserError
from ...files import write_atomically
from ...reading import (
    LARGEST_FILE,
    find_remote,
    is_remote,
    members_of,
    open_copy,
    patiently,
    remote_stamp,
    require_file,
)
from ..order import SHARDS_AT_A_TIME, ShardOrder
from .records import register_dataset
from .shard_index import VARIABLE, Entry, indexed
from .texts import tidy

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Columns of ``Shard.members``.
_IMAGE, _CAPTION = slice(0, 2), slice(2, 4)
_BY_SUFFIX = {"jpg": _IMAGE, "jpeg": _IMAGE, "png": _IMAGE, "webp": _IMAGE, "txt": _CAPTION}
_INDEX_VERSION = 1
_NEAR = 2**15  # bytes between an image and its caption, such as headers and metadata, that are read with them
_SECONDS_BETWEEN_MESSAGES = 30
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Stamp(NamedTuple):
    """Identifies a version of a file."""

    size: int  # bytes
    modified: int  # nanoseconds


class Shard(NamedTuple):
    """The places of the pairs in a tar.

    ``keys`` are bytes [N]. ``members`` are int64 [N, 4]: offset and size of the image in bytes, and offset and size of
    the caption. The offset of a missing image or caption is 0, where a tar always has a header.
    """

    path: str
    stamp: Stamp
    keys: np.ndarray
    members: np.ndarray


class InShards:
    """Records that are read from shards when they are requested. They have an order of their own.

    Args:
        shards: the shards, of any format.
        sizes: the number of records of each.
    """

    def __init__(self, shards: Sequence[Any], sizes: Sequence[int]):
        self.shards = tuple(shards)
        self._sizes = list(sizes)
        self._ends = np.cumsum(self._sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._sizes else 0

    def order(self, task: str, seed: int) -> ShardOrder:
        """The order in which a task goes through the records."""
        return ShardOrder(self._sizes, task, seed)

    def place_of(self, index: int) -> tuple[Any, int]:
        """The shard of a record, and its place in it, counted from the shard's end and negative."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.shards[number], int(index - self._ends[number])


class ShardRecords(InShards):
    """The pairs of shards. Each is read when it is requested, and only offsets are in memory.

    Raises:
        UnreadableImage: when a pair is read, if it has no image, no caption or an empty one, or if the shard is
            truncated there.
        UserError: when a pair is read, if the shard has been changed.
    """

    def __init__(self, shards: Sequence[Shard]):
        super().__init__(shards, [len(shard.keys) for shard in shards])

    def __getitem__(self, index: int) -> dict:
        """{"file_name": the shard's path with the key, "image_id", "image_bytes", "captions": a list of one
        caption}."""
        shard, place = self.place_of(index)
        name = shard.keys[place].decode()
        file_name = f"{shard.path}/{name}"
        image_at, image_size, caption_at, caption_size = shard.members[place].tolist()
        if not (image_at and caption_at):
            raise UnreadableImage(f"{file_name} has no {'caption' if image_at else 'image'}")
        image, caption = _read_both(shard, (image_at, image_size), (caption_at, caption_size), file_name)
        caption = tidy(caption.decode("utf-8", "replace"))
        if not caption:
            raise UnreadableImage(f"{file_name} has an empty caption")
        return {
            "file_name": file_name,
            "image_id": f"{os.path.basename(shard.path)}/{name}",
            "image_bytes": image,
            "captions": [caption],
        }


def register_image_text_shards(name: str, shards: str | Sequence[str], **metadata: Any) -> None:
    """Register WebDataset shards for the training of captioning and retrieval.

    Args:
        name: for ``DatasetCatalog``.
        shards: the paths of uncompressed tars, or a pattern of paths: as for glob, or with a range of numbers, for
            example "{00000..00099}.tar". They are searched when the dataset is first loaded.
        metadata: further metadata.
    """
    register_shards(name, shards, _load_pairs, **metadata)


def _load_pairs(paths: Sequence[str]) -> ShardRecords:
    entries = indexed(paths)
    if entries is None:
        return ShardRecords(load_each(paths, _load_shard))
    return ShardRecords([Shard(x.path, Stamp(x.size, x.modified), x.keys, x.members) for x in entries])


def entry_of(path: str) -> Entry:
    """What an index of many shards has of the one at this path, from its headers.

    Raises:
        UserError: the file is not an uncompressed tar, or a header in it is damaged.
    """
    if not is_remote(path):
        return Entry(path, *_stamp(os.stat(path)), *_read_headers(path))
    stamp = remote_stamp(path)
    with open_copy(path, stamp) as file:
        return Entry(path, *stamp, *_read_headers(file.name))


def register_shards(
    name: str, shards: str | Sequence[str], load: Callable[[Sequence[str]], InShards], **metadata: Any
) -> None:
    """Register shards of any format for training; see :func:`register_image_text_shards`.

    Args:
        name, shards, metadata: as there.
        load: the paths of the shards -> their records.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    register_dataset(
        name,
        lambda: load([path for pattern in patterns for path in find_shards(pattern)]),
        source=patterns[0] if patterns else name,
        in_shards=True,
        **metadata,
    )


def is_in_shards(name: str) -> bool:
    """Whether a dataset was registered by :func:`register_shards`."""
    return name in DatasetCatalog and MetadataCatalog.get(name).get("in_shards", False)


def find_shards(pattern: str) -> list[str]:
    """The paths that fit a pattern. A range of numbers gives all its paths, so that a missing one is noticed."""
    pattern = os.path.expanduser(pattern)
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        return [path for number in numbers for path in find_shards(pattern.replace(found.group(), number, 1))]
    is_pattern = any(sign in pattern for sign in "*?[")
    if is_remote(pattern):
        if paths := find_remote(pattern) if is_pattern else [pattern]:
            return paths
        raise FileNotFoundError(None, "no such shards", pattern)
    if not is_pattern:
        return [os.path.abspath(pattern)]
    if paths := sorted(glob.glob(pattern)):
        return [os.path.abspath(path) for path in paths]
    raise FileNotFoundError(None, "no such shards", pattern)


def load_each(paths: Sequence[str], load: Callable[[str, Stamp], T]) -> list[T]:
    """The shards at these paths, in their order. Shards are indexed when they are first loaded, which takes time."""
    # Each rank begins at another shard. Later it finds the indices that other ranks have written.
    first = len(paths) * comm.get_rank() // comm.get_world_size()
    loaded = {}
    last_message = time.monotonic()
    for path in [*paths[first:], *paths[:first]]:
        if is_remote(path):
            raise UserError(
                f"{path} needs an index, as its headers are not read again at every start: datasets/README.md"
            )
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file, which a shard has to be")
        loaded[path] = load(path, _stamp(status))
        if time.monotonic() > last_message + _SECONDS_BETWEEN_MESSAGES:
            last_message = time.monotonic()
            logger.info("looked through %d of %d shards", len(loaded), len(paths))
    return [loaded[path] for path in paths]


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns)


@functools.cache  # tasks with the same shards share them
def _load_shard(path: str, stamp: Stamp) -> Shard:
    """The shard, by its index in a file beside it. If there is no index with this stamp, it is made and, if
    possible, written."""
    index_path = f"{path}.index.npz"
    expected = [_INDEX_VERSION, *stamp]
    # An index is a zip archive, whose checksums are compared. There may be none yet, or one that is damaged in any way.
    with contextlib.suppress(Exception):
        require_file(index_path)
        with np.load(index_path, allow_pickle=False) as index:
            keys, members, found = index["keys"], index["members"], index["stamp"].tolist()
        known = found == expected and keys.dtype.kind == "S" and members.dtype == np.int64
        if known and keys.ndim == 1 and members.shape == (len(keys), 4) and (members >= 0).all():
            return Shard(path, stamp, keys, members)
    keys, members = _read_headers(path)

    def write(file: IO[bytes]) -> None:
        np.savez(file, stamp=np.array(expected), keys=keys, members=members)

    try:
        write_atomically(index_path, write)
    except OSError as error:
        logger.debug("%s is kept in memory only: %s", index_path, error)
    return Shard(path, stamp, keys, members)


def _read_headers(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The keys and members of a :class:`Shard`.

    Raises:
        UserError: the file is not an uncompressed tar, or a header in it is damaged.
    """
    pairs: dict[str, list[int]] = {}
    for member in members_of(path):
        _add_member(pairs, member)
    keys = np.array([key.encode("utf-8", "replace") for key in pairs], dtype=np.bytes_)
    return keys, np.array(list(pairs.values()), dtype=np.int64).reshape(-1, 4)


def _add_member(pairs: dict[str, list[int]], member: tarfile.TarInfo) -> None:
    folder, name = os.path.split(member.name)
    stem, _, suffix = name.partition(".")  # a key ends at the first dot, as in WebDataset
    columns = _BY_SUFFIX.get(suffix.lower())
    if member.isreg() and stem and columns:
        pairs.setdefault(os.path.join(folder, stem), [0] * 4)[columns] = member.offset_data, member.size


def _read_both(shard: Shard, image: tuple[int, int], caption: tuple[int, int], file_name: str) -> tuple[bytes, bytes]:
    """The contents of an image and a caption, given by offset and size. They mostly lie next to each other, and then
    are read at once: on a disk of the network, a second read takes as long as the first."""

    def read(offset: int, size: int) -> bytes:
        return read_part(shard.path, shard.stamp, offset, size, file_name)

    first, end = min(image[0], caption[0]), max(sum(image), sum(caption))
    if image[1] + caption[1] + _NEAR < end - first or min(image[1], caption[1]) < 0:
        return read(*image), read(*caption)
    together = read(first, end - first)
    of_image, of_caption = (together[offset - first :][:size] for offset, size in (image, caption))
    return of_image, of_caption


def read_part(path: str, stamp: Stamp, offset: int, size: int, file_name: str) -> bytes:
    """A part of a shard.

    Args:
        path, stamp: of the shard.
        offset, size: in bytes.
        file_name: names the record in messages.

    Raises:
        UnreadableImage: the part is too large, or the shard ends before it.
        UserError: the shard has been changed.
    """
    if min(offset, size) < 0 or offset + size > stamp.size:
        raise UnreadableImage(f"{file_name}: the shard is cut short here")
    if size > LARGEST_FILE:
        raise UnreadableImage(f"{file_name} has {size} bytes, more than {LARGEST_FILE}")
    try:
        content = patiently(lambda: _read_at(path, stamp, offset, size), path)
    except OSError as error:
        raise UnreadableImage(f"{file_name}: {error}") from error
    if len(content) < size:
        raise UnreadableImage(f"{file_name}: the shard is cut short here")
    return content


def _read_at(path: str, stamp: Stamp, offset: int, size: int) -> bytes:
    try:
        return os.pread(_open(path, stamp).fileno(), size, offset)
    except OSError:
        _open.cache_clear()  # after a server has failed, open files stay broken
        raise


@functools.lru_cache(maxsize=2 * SHARDS_AT_A_TIME)
def _open(path: str, stamp: Stamp) -> IO[bytes]:
    """The file. It is closed when others have been used more recently. Forked processes may share it, as reads give
    offsets."""
    if is_remote(path):
        return open_copy(path, stamp)
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    if _stamp(os.fstat(file.fileno())) != stamp:
        file.close()
        raise UserError(
            f"{path} was changed while it was in use; --resume goes on with what it is now. An index in {VARIABLE} "
            "has to be made anew before, by datasets/index_shards.py"
        )
    return file
