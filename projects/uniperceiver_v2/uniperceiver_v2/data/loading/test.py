"""Batches of a test dataset: every record once, images of one size together."""

import itertools
from collections.abc import Iterable, Iterator

from detectron2.data import build_detection_test_loader

from ...errors import UnreadableImage, UserError
from ..datasets.records import Records
from .transport import Batch, Mapper, UserErrorsAsValues, pack, raise_user_errors, unpack
from .workers import WorkerDied, Workers

MAX_WAITING = 8  # batches' worth of samples that may wait for others of their size


class TestLoader:
    """Every record once, shared among the ranks, in batches of images of one size.

    So nothing is padded for the sake of a neighbour, and what a model makes of an image does not depend on its batch.

    In evaluation no image may be left out: what cannot be read ends it.

    Args:
        records: of the dataset.
        mapper: from a record to a sample; may raise :class:`UnreadableImage`.
        batch_size: of this rank.
        num_workers: processes that prepare them; 0 for this one.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, records: Records, mapper: Mapper, *, batch_size: int, num_workers: int):
        self._loader = build_detection_test_loader(
            records,
            mapper=UserErrorsAsValues(_Demanding(mapper)),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=pack if num_workers else None,
        )
        self._batch_size = batch_size

    def __len__(self) -> int:
        """The number of this rank's batches where all images are of one size; else there may be more."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: an image cannot be read; a worker dies; or the mapper's own.
        """
        return of_one_size(self._chunks(), self._batch_size)

    def _chunks(self) -> Iterator[Batch]:
        try:
            for loaded in Workers(self._loader):
                yield raise_user_errors(unpack(loaded) if self._loader.num_workers else loaded)
        except WorkerDied as death:
            raise UserError(
                f"evaluation ended: {death}. Is it out of memory? Fewer DATALOADER.NUM_WORKERS need less"
            ) from death


def of_one_size(batches: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """The samples of some batches in other batches, each of images of one size; texts are all alike.

    A batch goes out when it is full, when so many samples wait that the most frequent size has to go, or at the end.

    Args:
        batches: of samples, with "image" [3,H,W] where there is one.
        batch_size: of a full batch.
    """
    waiting: dict[tuple[int, ...] | None, Batch] = {}
    for sample in itertools.chain.from_iterable(batches):
        size = tuple(sample["image"].shape[-2:]) if "image" in sample else None
        waiting.setdefault(size, []).append(sample)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) > MAX_WAITING * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


class _Demanding:
    """A mapper for which an image that cannot be read is a :class:`UserError`."""

    def __init__(self, mapper: Mapper):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict:
        try:
            return self._mapper(record)
        except UnreadableImage as error:
            raise UserError(f"an image to be evaluated cannot be read: {error}") from error
