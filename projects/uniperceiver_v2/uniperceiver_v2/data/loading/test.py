"""Batches of a test dataset: every record once, and images of the same size together."""

import itertools
from collections.abc import Iterable, Iterator

from detectron2.data import build_detection_test_loader

from ...errors import UnreadableImage, UserError
from ..datasets.records import Records
from .transport import Batch, Mapper, UserErrorsAsValues, pack, raise_user_errors, unpack
from .workers import WorkerDied, Workers

MAX_WAITING = 8  # batches; the number of samples that may wait for others of the same size


class TestLoader:
    """Every record once, divided among the ranks, in batches of images of the same size.

    So no image is padded to the size of another one, and a model's result for an image does not depend on its batch. No
    image may be left out of an evaluation. So an image that cannot be read ends it.

    Args:
        records: the dataset's records.
        mapper: turns a record into a sample; may raise :class:`UnreadableImage`.
        batch_size: the batch size of this rank.
        num_workers: the number of worker processes; with 0 this process does the work.
        remedy: the end of the message about an image that cannot be read.
    """

    __test__ = False  # pytest must not collect it

    def __init__(self, records: Records, mapper: Mapper, *, batch_size: int, num_workers: int, remedy: str = ""):
        self._loader = build_detection_test_loader(
            records,
            mapper=UserErrorsAsValues(_Demanding(mapper, remedy)),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=pack if num_workers else None,
        )
        self._batch_size = batch_size

    def __len__(self) -> int:
        """The number of this rank's batches if all images have the same size. Otherwise there may be more."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: an image cannot be read, a worker dies, or the mapper raises it.
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
    """Regroups samples into batches of images of the same size. All texts have the same size.

    A batch is returned when it is full. If too many samples wait, those of the most frequent size are returned. The
    rest is returned at the end.

    Args:
        batches: lists of samples, with "image" [3,H,W] if they have one.
        batch_size: the size of a full batch.
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
    """A mapper that raises :class:`UserError` for an image that cannot be read."""

    def __init__(self, mapper: Mapper, remedy: str):
        self._mapper, self._remedy = mapper, remedy

    def __call__(self, record: dict) -> dict:
        try:
            return self._mapper(record)
        except UnreadableImage as error:
            raise UserError(f"an image to be evaluated cannot be read: {error}{self._remedy}") from error
