"""The order of samples and their random numbers, as pure functions of the seed. Nothing about the data is ever saved.

The n-th batch of a task, with its augmentations, depends on (seed, the task's name, n) only. So all ranks agree without
communication, and a resumed run continues exactly where it was.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

SHARDS_AT_A_TIME = 8  # the records of so many shards are permuted together


def entropy_of(text: str) -> int:
    """A number for a name. Unlike Python's own hash, it is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class CountFrom:
    """The numbers start, start + 1, ... without end, from the beginning in every iteration over them."""

    def __init__(self, start: int):
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


class SampleOrder:
    """The endless order of a task's records: one random permutation after another.

    A position is a sample's number over all ranks and groups, counted from the first batch.

    Args:
        num_records: N > 0.
        task: the task's name.
        seed: 0 or more.
    """

    def __init__(self, num_records: int, task: str, seed: int):
        self._num_records = num_records
        self._stream = (seed, entropy_of(task))
        self._cached_epoch: tuple[int, np.ndarray] | None = None

    def index_at(self, position: int) -> int:
        """The index of the record at a position."""
        epoch, offset = divmod(position, self._num_records)
        if self._cached_epoch is None or self._cached_epoch[0] != epoch:
            rng = np.random.default_rng([*self._stream, 0, epoch])
            self._cached_epoch = (epoch, rng.permutation(self._num_records))
        return int(self._cached_epoch[1][offset])

    def rng_at(self, position: int) -> np.random.Generator:
        """The random generator for everything else about a position's sample, such as its augmentation."""
        return np.random.default_rng([*self._stream, 1, position])

    def other_index(self, rng: np.random.Generator) -> int:
        """The index of a record that replaces an unusable one."""
        return int(rng.integers(self._num_records))


class RepeatOrder(SampleOrder):
    """An order in which record i comes ``factors[i]`` times an epoch on average, for example to show rare categories.

    All epochs have the same length, so that a position alone says which epoch it is in. Therefore the factors are
    scaled until their sum is whole. In each epoch, a record comes as often as its factor, rounded down or up.

    Args:
        factors: [N], each 0 or more, not all 0.
        task, seed: see :class:`SampleOrder`.
    """

    def __init__(self, factors: Sequence[float], task: str, seed: int):
        ends = np.cumsum(np.asarray(factors, dtype=np.float64))
        self._length = int(np.ceil(ends[-1]))
        self._ends = ends * (self._length / ends[-1])
        self._ends[-1] = self._length  # exactly
        super().__init__(len(ends), task, seed)

    def index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self._length)
        if self._cached_epoch is None or self._cached_epoch[0] != epoch:
            rng = np.random.default_rng([*self._stream, 0, epoch])
            # One offset for all records: the number of whole numbers in a record's interval is its factor on average,
            # and their sum is the length.
            until = np.floor(self._ends + rng.random()).astype(np.int64)
            times = np.diff(until, prepend=0)
            self._cached_epoch = (epoch, rng.permutation(np.repeat(np.arange(self._num_records), times)))
        return int(self._cached_epoch[1][offset])


class ShardOrder(SampleOrder):
    """The order of records in shards. Neighbouring positions use records of few shards, so that few files are open at a
    time.

    Every epoch permutes the shards. Then it permutes the records of each window of ``SHARDS_AT_A_TIME`` consecutive
    shards.

    Args:
        sizes: the number of records of each shard, in the order of the records. Their sum is above 0.
        task, seed: see :class:`SampleOrder`.
    """

    def __init__(self, sizes: Sequence[int], task: str, seed: int):
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        super().__init__(int(self._starts[-1]), task, seed)
        self._cached_shards: tuple[int, np.ndarray, np.ndarray] | None = None
        self._cached_window: tuple[tuple[int, int], np.ndarray] | None = None

    def index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self._num_records)
        shards, bounds = self._shards_of(epoch)
        window = (int(np.searchsorted(bounds, offset, side="right")) - 1) // SHARDS_AT_A_TIME
        if self._cached_window is None or self._cached_window[0] != (epoch, window):
            self._cached_window = ((epoch, window), self._draw(epoch, window, shards))
        return int(self._cached_window[1][offset - bounds[window * SHARDS_AT_A_TIME]])

    def _shards_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards [S] in an epoch's order, and the offset in the epoch at which each begins [S + 1]."""
        if self._cached_shards is None or self._cached_shards[0] != epoch:
            shards = np.random.default_rng([*self._stream, 0, epoch]).permutation(len(self._starts) - 1)
            bounds = np.concatenate([[0], np.cumsum(np.diff(self._starts)[shards])])
            self._cached_shards = (epoch, shards, bounds)
        return self._cached_shards[1:]

    def _draw(self, epoch: int, window: int, shards: np.ndarray) -> np.ndarray:
        """The records of a window in their order."""
        chosen = shards[window * SHARDS_AT_A_TIME : (window + 1) * SHARDS_AT_A_TIME]
        records = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in chosen])
        return np.random.default_rng([*self._stream, 2, epoch, window]).permutation(records)


class ShapeOrder(SampleOrder):
    """Another order, with images of similar shapes in a batch, so that less of a batch is padding.

    The positions of ``window`` batches that follow each other are sorted by the aspect ratio of their images and cut
    into batches. The batches then come in a random order. So an epoch still has each of its records as often as before,
    and a position alone says which record it has.

    Args:
        order: the other order.
        aspects: [N], width / height of the image of each record.
        batch_size: over all ranks.
        window: the number of batches.
    """

    def __init__(self, order: SampleOrder, aspects: Sequence[float], batch_size: int, window: int):
        self._num_records, self._stream = order._num_records, order._stream
        self._order, self._aspects = order, np.asarray(aspects, dtype=np.float32)
        self._shape, self._cached_window = (window, batch_size), (-1, np.empty(0, dtype=np.int64))

    def index_at(self, position: int) -> int:
        window, offset = divmod(position, int(np.prod(self._shape)))
        if self._cached_window[0] != window:
            self._cached_window = (window, self._draw(window))
        return int(self._cached_window[1][offset])

    def _draw(self, window: int) -> np.ndarray:
        """The records of a window in their order."""
        size = int(np.prod(self._shape))
        records = np.array([self._order.index_at(window * size + offset) for offset in range(size)])
        batches = records[np.argsort(self._aspects[records], kind="stable")].reshape(self._shape)
        return np.random.default_rng([*self._stream, 3, window]).permutation(batches).ravel()


@contextlib.contextmanager
def numpy_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """A context in which NumPy's global functions, as Detectron2's augmentations use them, draw from ``rng``.

    Afterwards the global generator continues where it was, so that loading in the main process does not affect other
    code. Unlike seeding, this costs next to nothing.
    """
    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(rng.bit_generator)
    try:
        yield
    finally:
        np.random.set_bit_generator(usual)
