"""Writing of checkpoints while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from ..shards import whole


class BackgroundWriter:
    """Does one job of writing at a time in a thread of its own.

    The interpreter waits for the thread at its end, so a job that has begun is not lost by an exception elsewhere.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before is done.

        Raises:
            Exception: what the job before has raised.
        """
        self.wait()
        self._job = self._pool.submit(job)

    def wait(self) -> None:
        """Wait for the job, if there is one.

        Raises:
            Exception: what the job has raised, once.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()


def on_host(state: Any, keep: bool = True) -> Any:
    """A copy of a state on the host, of the same types, which later steps do not change. Its tensors are whole.

    If tensors are divided among ranks, every rank has to call this. Without ``keep`` a rank takes part and has None in
    the place of tensors.
    """
    if isinstance(state, Tensor):
        tensor = whole(state.detach())
        return tensor.to("cpu", copy=True) if keep else None
    if isinstance(state, list | tuple):
        return type(state)(on_host(value, keep) for value in state)
    if not isinstance(state, dict):
        return state
    copied = copy.copy(state)
    for key, value in state.items():
        copied[key] = on_host(value, keep)
    if hasattr(state, "_metadata"):  # a module's, which its load_state_dict reads
        copied._metadata = state._metadata
    return copied
