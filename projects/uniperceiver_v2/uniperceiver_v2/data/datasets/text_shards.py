"""Corpora larger than memory: shards of text with one text on each line, read by the offsets of their lines.

Batches are pure functions of their number, so that a line may be read at any time. An index beside each shard has the
place of every line. It is mapped into memory, and so takes none of a process's own.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib

from ...errors import UnreadableImage
from ...files import write_atomically
from ...reading import require_file
from .shards import InShards, Stamp, load_each, read_part, register_shards
from .texts import tidy

logger = logging.getLogger(__name__)

_INDEX_VERSION = 3
_LARGEST_TEXT = 2**16  # bytes; of a longer line the rest is left out, as the text encoder would do with far less
_AT_A_TIME = 2**24  # bytes of a shard that are searched for ends of lines


class TextShard(NamedTuple):
    """The places of the texts in a file: int64 [N, 2], offset and size of each line in bytes. Empty lines are left
    out."""

    path: str
    stamp: Stamp
    lines: np.ndarray


class TextShards(InShards):
    """The texts of shards. Each is read when it is requested.

    Raises:
        UnreadableImage: when a text is read, if it has only white space.
        UserError: when a text is read, if the shard has been changed.
    """

    def __init__(self, shards: Sequence[TextShard]):
        super().__init__(shards, [len(shard.lines) for shard in shards])

    def __getitem__(self, index: int) -> dict:
        """{"text_id": the shard's name with the number of the text in it, "text"}."""
        shard, place = self.place_of(index)
        offset, size = shard.lines[place].tolist()
        text_id = f"{os.path.basename(shard.path)}:{len(shard.lines) + place}"
        where = f"{shard.path}: the text at byte {offset}"
        content = read_part(shard.path, shard.stamp, offset, min(size, _LARGEST_TEXT), where)
        # A character that is cut at the end is left out, and a wrong byte is replaced.
        text = tidy(content.decode("utf-8", "ignore" if size > _LARGEST_TEXT else "replace"))
        if not text:
            raise UnreadableImage(f"{where} has only white space")
        return {"text_id": text_id, "text": text}


def register_text_shards(name: str, shards: str | Sequence[str], **metadata: Any) -> None:
    """Register text files with one text on each line for language modelling, without reading them into memory.

    Args:
        name: for ``DatasetCatalog``.
        shards: paths or patterns, as :func:`~.shards.register_image_text_shards` takes them. Several files of similar
            sizes give a better order than one: every epoch mixes the texts of eight files at a time.
        metadata: further metadata.
    """
    register_shards(name, shards, lambda paths: TextShards(load_each(paths, _load_shard)), **metadata)


@functools.cache  # tasks with the same shards share them
def _load_shard(path: str, stamp: Stamp) -> TextShard:
    """The shard, by its index in a file beside it. If there is no index with this stamp, it is made and, if possible,
    written."""
    index_path = f"{path}.index.npy"
    with contextlib.suppress(Exception):  # there is no index yet, or it is damaged in whatever way
        require_file(index_path)
        index = np.load(index_path, mmap_mode="r", allow_pickle=False)
        if index.dtype == np.int64 and np.array_equal(index[:2], _head(stamp, index[2:])):
            return TextShard(path, stamp, index[2:])
    lines = np.concatenate(list(_lines(path)))
    index = np.concatenate([_head(stamp, lines), lines])
    try:
        write_atomically(index_path, lambda file: np.save(file, index))
        index = np.load(index_path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        logger.debug("%s is kept in memory only: %s", index_path, error)
    return TextShard(path, stamp, index[2:])


def _head(stamp: Stamp, lines: np.ndarray) -> np.ndarray:
    """The first two rows of an index: whose it is, and the checksum of its other rows."""
    return np.array([[_INDEX_VERSION, stamp.size], [stamp.modified, isal_zlib.crc32(np.ascontiguousarray(lines))]])


def _lines(path: str) -> Iterator[np.ndarray]:
    """Offsets and sizes int64 [n, 2] of the lines of a file that are not empty, part by part."""
    begin = position = 0  # of the line, and of the part
    with open(path, "rb") as file:
        while part := file.read(_AT_A_TIME):
            ends = position + np.flatnonzero(np.frombuffer(part, dtype=np.uint8) == ord("\n"))
            position += len(part)
            starts = np.concatenate([[begin], ends + 1])
            begin = int(starts[-1])
            yield _filled(starts[:-1], ends)
    yield _filled(np.array([begin]), np.array([position]))


def _filled(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    lines = np.stack([starts, ends - starts], axis=1).astype(np.int64)
    return lines[lines[:, 1] > 0]
