"""One thread that owns the model. Requests take turns step by step, and none waits longer than its time."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import UserError

Result = TypeVar("Result")


class TooLate(UserError):
    """A request has used up its time."""


class Deadline:
    """The time of a request, from now on."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            TooLate: none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return left

    def error(self) -> TooLate:
        return TooLate(f"no answer within {self.seconds:g} s: the server is busy, or the question is too large")


class Worker:
    """Runs the steps of all requests in one thread, in the order in which they arrive.

    A step that has begun cannot be stopped. So steps are small (an encoding, an answer), and what is asked is bounded:
    a request that is too late loses its answer, and the others wait for one of its steps at most.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "model")

    def run(self, step: Callable[[], Result], deadline: Deadline | None = None) -> Result:
        """The result of a step, or its error.

        Raises:
            TooLate: the deadline has passed. If the step had not begun by then, it never does.
        """
        left = None if deadline is None else deadline.left()
        future = self._thread.submit(step)
        # A step's own TimeoutError is no deadline, so the two are told apart.
        done, _ = concurrent.futures.wait([future], left)
        if deadline is not None and not done:
            future.cancel()
            raise deadline.error()
        return future.result()

    def close(self) -> None:
        """Ends the thread. Steps that have not begun are dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
