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

    def copied(_: str, value: Tensor) -> Tensor | None:
        tensor = whole(value.detach())
        return tensor.to("cpu", copy=True) if keep else None

    return map_tensors(state, copied)


def parts_on_host(state: Any) -> Any:
    """As :func:`on_host`, but what is divided among ranks stays divided, and ranks need not wait for each other."""
    return map_tensors(state, lambda _, value: value.detach().to("cpu", copy=True))


def map_tensors(state: Any, change: Callable[[str, Tensor], Any], where: str = "") -> Any:
    """A state with other tensors, and copies of the dicts and lists around them.

    Args:
        state: dicts, lists and tuples in each other, with tensors and other values.
        change: gets the place of a tensor, which is its keys with slashes between, and the tensor.
        where: the place of the state itself.
    """
    if isinstance(state, Tensor):
        return change(where, state)
    if isinstance(state, list | tuple):
        return type(state)(map_tensors(value, change, f"{where}/{place}") for place, value in enumerate(state))
    if not isinstance(state, dict):
        return state
    copied = copy.copy(state)
    for key, value in state.items():
        copied[key] = map_tensors(value, change, f"{where}/{key}")
    if hasattr(state, "_metadata"):  # a module's, which its load_state_dict reads
        copied._metadata = state._metadata
    return copied
