"""DataLoader's worker processes, and what happens when one dies."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader


class WorkerDied(Exception):
    """A worker process has ended unexpectedly. The message says how."""


class _Flag:
    """An event without a lock. Workers of a DataLoader look at their loader's event before each batch. If one is killed
    while it holds the lock of a usual event, whoever looks next waits for ever."""

    def __init__(self, context: BaseContext):
        self._byte = context.RawValue("b", 0)

    def is_set(self) -> bool:
        return bool(self._byte.value)

    def set(self) -> None:
        self._byte.value = 1


def _context() -> BaseContext:
    """The usual way to start processes, with events that no killed process can hold."""
    usual = type(multiprocessing.get_context(multiprocessing.get_start_method()))
    return type("WorkerContext", (usual,), {"Event": lambda self: _Flag(self)})()


class Workers:
    """Iterates over a loader. Raises :class:`WorkerDied` if a worker has died, but only while the next batch is
    awaited.

    PyTorch reports a dead worker by an exception in a signal handler, wherever the program is at that time. This may be
    the middle of an optimizer's step, which is then incomplete. Therefore this class removes PyTorch's handler after
    the workers have started, and looks for dead workers when a batch is due.

    Args:
        loader: a loader with or without workers, which are started here, in its way to start processes if it has one.
    """

    def __init__(self, loader: DataLoader):
        if loader.num_workers and loader.multiprocessing_context is None:
            loader.multiprocessing_context = _context()
        before = set(multiprocessing.active_children())
        with _without_torchs_handler():
            self._iterator = iter(loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in before]

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        """
        Raises:
            WorkerDied: a worker has died. This object cannot be used any more.
        """
        try:
            # If a worker dies during the wait, the wait has to end, as the data from its pipe may never come.
            with _raised_at_deaths(self._processes):
                return next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            # PyTorch has noticed a dead worker, or a connection to it is broken. A worker that was just killed may not
            # have an exit code yet, as its files are closed first, its sentinel among them.
            gone = multiprocessing.connection.wait([process.sentinel for process in self._processes], timeout=1)
            for process in self._processes:
                if process.sentinel in gone:
                    process.join(timeout=1)
            _check(self._processes)
            if str(error).startswith("DataLoader worker"):  # a worker that ended normally, but too early
                raise WorkerDied(str(error)) from error
            raise


def _check(processes: list[BaseProcess]) -> None:
    dead = [process for process in processes if process.exitcode]  # 0 is the normal end
    if dead:
        raise WorkerDied(", ".join(f"worker {process.pid} {_ending(process.exitcode)}" for process in dead))


def _ending(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with code {exitcode}"
    if exitcode == -signal.SIGBUS:
        causes = "is the shared memory in /dev/shm full, or a disk with an index of shards out of reach?"
        return f"was killed by SIGBUS: {causes}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"was killed by signal {-exitcode}"


@contextlib.contextmanager
def _raised_at_deaths(processes: list[BaseProcess]) -> Iterator[None]:
    """A context that raises :class:`WorkerDied` if one of the processes is dead or dies."""
    if not processes or threading.current_thread() is not threading.main_thread():
        yield  # other threads cannot set handlers; PyTorch itself checks every few seconds
        return
    usual = _handler()

    def check(*signal_and_frame) -> None:
        try:
            _check(processes)
        except WorkerDied:
            signal.signal(signal.SIGCHLD, usual)  # here, as the exception may also interrupt the last line
            raise
        if callable(usual):
            usual(*signal_and_frame)

    signal.signal(signal.SIGCHLD, check)
    try:
        _check(processes)
        yield
    finally:
        signal.signal(signal.SIGCHLD, usual)


@contextlib.contextmanager
def _without_torchs_handler() -> Iterator[None]:
    """A context in which PyTorch may set its handler of SIGCHLD. Afterwards the handler is removed."""
    usual = _handler()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, usual)


def _handler() -> Callable | signal.Handlers:
    """The handler of SIGCHLD. SIG_DFL if it is PyTorch's, which another loader may have set."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_torchs = (getattr(handler, "__module__", None) or "").startswith("torch.")
    return signal.SIG_DFL if is_torchs or handler is None else handler
