"""The next batches are made ready in a thread, while the present ones are computed."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .transport import Batch

NOT_HERE = object()  # what a loader gives to the thread in place of a batch, if the main thread has to fetch it


class _Fetched(NamedTuple):
    batch: Batch | object
    unreadable: int  # images of the task until then


class BatchesAhead:
    """Batches of tasks, one after the other, each fetched a draw before it is asked for.

    To fetch is to wait for the loader's workers, to unpack what they made, and to make it ready. Processes are started
    by the main thread alone: a fork copies locks that another thread may hold. So a loader whose workers have to start
    gives ``NOT_HERE`` to the thread, and the main thread asks again.

    Loaders without workers, and those that are no :class:`~.train.TrainLoader`, are asked when a batch is due: a thread
    would only compete with the training for the processor.

    Args:
        loaders: an iterable of batches for each task.
        ready: makes a batch ready, for example by copies to a device. Not used where the thread is not.
    """

    def __init__(self, loaders: Mapping[str, Iterable[Batch]], ready: Callable[[Batch], Batch]):
        self._loaders = loaders
        self._batches: dict[str, Iterator[Batch]] = {task: iter(loader) for task, loader in loaders.items()}
        self._wanted: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[list[_Fetched] | BaseException] = queue.SimpleQueue()
        self._asked: tuple[str, ...] = ()
        self.num_unreadable: Counter[str] = Counter()
        self._ready, self._thread = _unchanged, None
        if all(getattr(loader, "num_workers", 0) for loader in loaders.values()):
            # A daemon: it may wait for a worker that hangs when the program ends.
            self._ready, self._thread = ready, FetchingThread(target=self._serve, daemon=True)
            self._thread.start()

    def take(self, tasks: Sequence[str], then: Sequence[str]) -> dict[str, Batch]:
        """The next batch of each of these tasks, different ones. The thread goes on with those of ``then``, which the
        next call has to ask for; nothing for the last call.

        ``num_unreadable`` is then the number of unreadable images by task, up to these batches.

        Raises:
            UserError: as the loaders do.
        """
        if not self._asked:
            found = self._fetch(tasks)
        else:
            assert self._asked == tuple(tasks), f"{self._asked} were fetched, and {tasks} are asked for"
            found = self._found.get()
        self._asked = ()
        if isinstance(found, BaseException):
            raise found
        batches = {}
        for task, fetched in zip(tasks, found, strict=True):
            fetched = self._fetch([task])[0] if fetched.batch is NOT_HERE else fetched
            batches[task], self.num_unreadable[task] = fetched
        if self._thread is not None and then:
            self._asked = tuple(then)
            self._wanted.put(then)
        return batches

    def _fetch(self, tasks: Sequence[str]) -> list[_Fetched]:
        found = []
        for task in tasks:
            batch = next(self._batches[task])
            batch = batch if batch is NOT_HERE else self._ready(batch)
            found.append(_Fetched(batch, getattr(self._loaders[task], "num_unreadable", 0)))
        return found

    def _serve(self) -> None:
        while tasks := self._wanted.get():
            try:
                self._found.put(self._fetch(tasks))
            except BaseException as error:  # for the main thread
                self._found.put(error)

    def close(self) -> None:
        """End the thread, once it has what it waits for."""
        self._wanted.put(())


def _unchanged(batch: Batch) -> Batch:
    return batch


class FetchingThread(threading.Thread):
    """A thread that must not start processes."""


def is_fetching() -> bool:
    """Whether this is a thread of :class:`BatchesAhead`."""
    return isinstance(threading.current_thread(), FetchingThread)
