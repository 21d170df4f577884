"""Batches of a test dataset: every record once."""

from collections.abc import Iterator

from detectron2.data import build_detection_test_loader

from ...errors import UnreadableImage, UserError
from ..datasets.records import Records
from .transport import Batch, Mapper, UserErrorsAsValues, pack, raise_user_errors, unpack
from .workers import WorkerDied, Workers


class TestLoader:
    """Every record once, shared among the ranks, in batches.

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

    def __len__(self) -> int:
        """The number of this rank's batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: an image cannot be read; a worker dies; or the mapper's own.
        """
        try:
            for loaded in Workers(self._loader):
                yield raise_user_errors(unpack(loaded) if self._loader.num_workers else loaded)
        except WorkerDied as death:
            raise UserError(
                f"evaluation ended: {death}. Is it out of memory? Fewer DATALOADER.NUM_WORKERS need less"
            ) from death


class _Demanding:
    """A mapper for which an image that cannot be read is a :class:`UserError`."""

    def __init__(self, mapper: Mapper):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict:
        try:
            return self._mapper(record)
        except UnreadableImage as error:
            raise UserError(f"an image to be evaluated cannot be read: {error}") from error
