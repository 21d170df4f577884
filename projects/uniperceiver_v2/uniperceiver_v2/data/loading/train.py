"""Batches of a training task: endless, the same for any number of workers, and robust to broken images and workers."""

import itertools
import logging
from collections.abc import Iterable, Iterator

import torch
from detectron2.data import DatasetFromList
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...errors import UnreadableImage, UserError
from ...freed_memory import give_back_freed_memory
from ..datasets.once_a_node import OneCopy, processes_here
from ..datasets.records import Records
from ..datasets.shards import InShards
from ..order import SampleOrder, numpy_draws_from
from .ahead import NOT_HERE, is_fetching
from .shared_memory import warn_of_shared_memory
from .transport import Batch, Mapper, UserErrorsAsValues, pack, raise_user_errors, unpack
from .workers import WorkerDied, Workers

logger = logging.getLogger(__name__)

MIN_IMAGES_FOR_SHARE = 100  # before this number, the share of unreadable images is not checked
MAX_WORKER_FAILURES = 3  # consecutive failures without a batch in between
MAX_NAMED = 100  # the log names this number of unreadable images, and counts the others
MAX_REPLACEMENTS = 20  # consecutive unreadable images for one place in a batch


class TrainingBatches(Dataset):
    """A dataset with batch n of a task as element n: this rank's samples, and messages about unreadable images.

    Args:
        records: the records of the task's datasets. A list is serialised for the workers.
        mapper: turns a record into a sample; may raise :class:`UnreadableImage`. If its ``takes_another`` is true, a
            record comes with a second one of the same task, below the key "another".
        order: the order of the records.
        batch_size: the batch size over all ranks that share a batch, a multiple of ``world_size``.
        rank, world_size: decide this rank's share.
    """

    def __init__(
        self,
        records: Records | InShards,
        mapper: Mapper,
        order: SampleOrder,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
    ):
        # Serialised, so that forked workers share the memory of the records, and the other processes of this machine as
        # well. Each access returns a new copy.
        serialize = OneCopy if processes_here() > 1 else True
        is_list = isinstance(records, list)
        self._records = DatasetFromList(records, copy=False, serialize=serialize) if is_list else records
        self._mapper = UserErrorsAsValues(mapper)
        self._takes_another = getattr(mapper, "takes_another", False)
        self._order = order
        self._batch_size = batch_size
        self.samples_per_batch = batch_size // world_size
        first = rank * self.samples_per_batch
        self._places = range(first, first + self.samples_per_batch)

    def __getitem__(self, batch: int) -> tuple[list[dict | UserError], list[str]]:
        """The samples (see :class:`UserErrorsAsValues`), and a message for each image that could not be read.

        There are fewer than ``samples_per_batch`` samples only if replacements could not be read either.
        """
        samples: list[dict | UserError] = []
        unreadable: list[str] = []
        for place in self._places:
            sample = self._make_sample(batch * self._batch_size + place, unreadable)
            if sample is None:
                break
            samples.append(sample)
        return samples, unreadable

    def _make_sample(self, position: int, unreadable: list[str]) -> dict | UserError | None:
        rng = self._order.rng_at(position)
        index = self._order.index_at(position)
        for _ in range(MAX_REPLACEMENTS):
            try:
                record = self._records[index]
                if self._takes_another:
                    record = {**record, "another": self._records[self._order.other_index(rng)]}
                with numpy_draws_from(rng):
                    return self._mapper(record)
            except UserError as error:  # raised by reading the record; the mapper returns its errors as values
                return error
            except UnreadableImage as error:
                unreadable.append(str(error))
                index = self._order.other_index(rng)
        return None


class TrainLoader:
    """Iterates over :class:`TrainingBatches` in the order of ``numbers``, and handles broken images and dying workers.

    An unreadable image is replaced by another one and counted. The log names it once. If a worker dies, all workers are
    started again, beginning with the batch that is due.

    Args:
        batches: the batches.
        numbers: the numbers of the batches, without end, from the beginning in every iteration over them.
        num_workers: the number of worker processes; with 0 this process does the work.
        max_corrupt_share: iteration ends when the share of unreadable images exceeds this.
        task_name: the task's name, for messages.
        remedy: the end of the message about too many unreadable images.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        *,
        numbers: Iterable[int],
        num_workers: int,
        max_corrupt_share: float,
        task_name: str,
        remedy: str = "",
    ):
        self._batches = batches
        self._numbers = numbers
        self.num_workers = num_workers
        self._samples_per_batch = batches.samples_per_batch
        self._max_corrupt_share = max_corrupt_share
        self._task_name = task_name
        self._remedy = remedy
        self._num_read = 0
        self._num_unreadable = 0
        self._named: set[str] = set()

    @property
    def num_unreadable(self) -> int:
        """The number of unreadable images so far. An image counts each time that it is read."""
        return self._num_unreadable

    def __iter__(self) -> Iterator[Batch]:
        """Batches. In the thread of :class:`~.ahead.BatchesAhead`, ``NOT_HERE`` where workers have to be started.

        Raises:
            UserError: the share of unreadable images is above the limit, workers die again and again, or the mapper
                raises it.
        """
        done, failures = 0, 0
        while True:
            if is_fetching():
                yield NOT_HERE
            workers = self._start_workers(done)
            try:
                for loaded in workers:
                    if done == 0 and self.num_workers:
                        warn_of_shared_memory(self._task_name, loaded.nbytes, self.num_workers)
                    yield self._answer_for(loaded)
                    done, failures = done + 1, 0
            except WorkerDied as death:
                reason = str(death)
            del workers  # ends the remaining workers
            failures += 1
            due = next(itertools.islice(self._numbers, done, None))
            if failures == MAX_WORKER_FAILURES:
                raise UserError(
                    f"task {self._task_name}: {failures} times in a row workers died before batch {due} was there, "
                    f"at last {reason}. Are they out of memory? Fewer DATALOADER.NUM_WORKERS need less; "
                    "--resume goes on"
                )
            logger.warning("task %s: %s; new workers go on with batch %d", self._task_name, reason, due)

    def _start_workers(self, done: int) -> Workers:
        return Workers(
            DataLoader(
                self._batches,
                sampler=_Rest(self._numbers, done),
                batch_size=None,
                collate_fn=pack if self.num_workers else _as_it_is,
                num_workers=self.num_workers,
                worker_init_fn=_give_back_what_is_inherited,
                # The seed of the workers, which is drawn when they start, is not taken from the random numbers of
                # training.
                generator=torch.Generator(),
            )
        )

    def _answer_for(self, loaded: Tensor | tuple) -> Batch:
        made, unreadable = unpack(loaded) if self.num_workers else loaded
        samples = raise_user_errors(made)
        self._num_read += len(samples) + len(unreadable)
        self._num_unreadable += len(unreadable)
        for message in unreadable:
            if message not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(message)
                logger.warning("task %s: skipped an image that cannot be read: %s", self._task_name, message)
        self._check_share(is_complete=len(samples) == self._samples_per_batch)
        return samples

    def _check_share(self, is_complete: bool) -> None:
        too_few_to_tell = self._num_read < MIN_IMAGES_FOR_SHARE
        tolerable = self._num_unreadable <= self._max_corrupt_share * self._num_read
        if is_complete and (too_few_to_tell or tolerable):
            return
        raise UserError(
            f"task {self._task_name}: {self._num_unreadable} of {self._num_read} images cannot be read, more than "
            f"DATALOADER.MAX_CORRUPT_SHARE ({self._max_corrupt_share}) allows, among them "
            f"{'; '.join(sorted(self._named)[:3])}{self._remedy}"
        )


def _give_back_what_is_inherited(_worker: int) -> None:
    """A forked worker begins with the main process's heap, which has room that was freed there."""
    give_back_freed_memory()


def _as_it_is(loaded: tuple) -> tuple:
    return loaded


class _Rest(Sampler):
    """``numbers`` without the first ``done`` of them."""

    def __init__(self, numbers: Iterable[int], done: int):
        self._numbers, self._done = numbers, done

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._numbers, self._done, None)
