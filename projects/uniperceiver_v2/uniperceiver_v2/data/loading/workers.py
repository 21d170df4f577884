"""DataLoader's worker processes, and what becomes of one that dies."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader


class WorkerDied(Exception):
    """A worker process has ended by itself; the message says how."""


class Workers:
    """Iterates over a loader, and raises :class:`WorkerDied` where a worker has died, only while it is waited for.

    torch reports a dead worker by an exception out of a signal's handler, wherever the program happens to be: in the
    middle of an optimizer's step, say, which then is half done. Here its handler is taken away again as soon as the
    workers are started, and deaths are looked for when a batch is due.

    Args:
        loader: with or without workers; started here.
    """

    def __init__(self, loader: DataLoader):
        before = set(multiprocessing.active_children())
        with _without_torchs_handler():
            self._iterator = iter(loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in before]

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        """
        Raises:
            WorkerDied: then this is of no more use.
        """
        try:
            # A death in the middle of the wait has to end it: what another end of a pipe awaits may never come.
            with _raised_at_deaths(self._processes):
                return next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            # torch's own look at its workers, or a connection to one that has gone. One that has just been killed may
            # not be seen to be dead yet: its files are closed, its sentinel among them, before there is an exit code.
            gone = multiprocessing.connection.wait([process.sentinel for process in self._processes], timeout=1)
            for process in self._processes:
                if process.sentinel in gone:
                    process.join(timeout=1)
            _check(self._processes)
            if str(error).startswith("DataLoader worker"):  # one that ended in order, but too soon
                raise WorkerDied(str(error)) from error
            raise


def _check(processes: list[BaseProcess]) -> None:
    dead = [process for process in processes if process.exitcode]  # 0 is what a worker without more work ends with
    if dead:
        raise WorkerDied(", ".join(f"worker {process.pid} {_ending(process.exitcode)}" for process in dead))


def _ending(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with code {exitcode}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"was killed by signal {-exitcode}"


@contextlib.contextmanager
def _raised_at_deaths(processes: list[BaseProcess]) -> Iterator[None]:
    """Within, :class:`WorkerDied` is raised when one of the processes is or becomes dead."""
    if not processes or threading.current_thread() is not threading.main_thread():
        yield  # other threads may set no handlers; torch looks every few seconds by itself
        return
    usual = _handler()

    def check(*signal_and_frame) -> None:
        try:
            _check(processes)
        except WorkerDied:
            signal.signal(signal.SIGCHLD, usual)  # here, as what is raised may also keep the line below from its work
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
    """Within, torch may set its handler of SIGCHLD; afterwards it is not there."""
    usual = _handler()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, usual)


def _handler() -> Callable | signal.Handlers:
    """That of SIGCHLD, unless it is torch's, which any other loader may have set."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_torchs = (getattr(handler, "__module__", None) or "").startswith("torch.")
    return signal.SIG_DFL if is_torchs or handler is None else handler
