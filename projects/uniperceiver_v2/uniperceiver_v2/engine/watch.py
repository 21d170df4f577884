"""Processes watch each other: one that has stopped ends the run by its name."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

import torch.distributed as dist

from .members import Member

_BEATS = 10  # signs of life within the limit


class Watch:
    """While it is active, this process gives signs of life through the store, and ends if another gives none.

    A process gives none if it was stopped (SIGSTOP), if its host is gone, or if it holds Python's lock all the time.
    One that is busy, with a long evaluation for example, does give them.

    Two threads are needed. If the process that keeps the store has stopped, reading the store never ends. Then the
    second thread sees that even this process's own signs do not come back.

    Args:
        store: a store of this start of the run.
        members: all processes, by rank.
        rank: this process.
        limit: seconds without a sign of life.
    """

    def __init__(self, store: dist.Store, members: Sequence[Member], rank: int, limit: float):
        # A connection of its own, as another one may wait inside a call. Older versions of PyTorch do not have it.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._members, self._rank, self._limit = members, rank, limit
        self._over = threading.Event()
        self._seen = [(b"", time.monotonic())] * len(members)  # last sign and when it came, by rank

    def __enter__(self) -> None:
        for work in (self._beat, self._judge):
            threading.Thread(target=work, name=f"watch{work.__name__}", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._store.set(f"beat/{self._rank}", "over")  # nobody shall wait for signs of a process that is done

    def _beat(self) -> None:
        keys, count = [f"beat/{rank}" for rank in range(len(self._members))], 0
        while not self._over.wait(self._limit / _BEATS):
            count += 1
            try:
                self._store.set(keys[self._rank], str(count))
                found = self._store.multi_get(keys)
            except RuntimeError:  # the store is gone, and with it the process that keeps it; the other thread tells
                return
            now = time.monotonic()
            self._seen = [old if old[0] == new else (new, now) for old, new in zip(self._seen, found)]

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._limit / _BEATS):
            now = time.monotonic()
            if now - last > self._limit / 2:  # this process itself was stopped, perhaps together with all others
                self._seen = [(sign, now) for sign, _ in self._seen]
            last = now
            silent = [rank for rank, (sign, at) in enumerate(self._seen) if sign != b"over" and now - at > self._limit]
            if silent and not self._over.is_set():
                self._end([0] if self._rank in silent else silent)

    def _end(self, silent: Sequence[int]) -> None:
        mine = self._members[self._rank]
        named = ", ".join(f"process {rank} on {self._members[rank].host}" for rank in silent)
        print(
            f"error (process {self._rank}): no sign of life for {self._limit:g} seconds from {named}. The run ends; "
            "--resume goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        for rank in silent:
            other = self._members[rank]
            if (other.host, other.parent) == (mine.host, mine.parent):  # their parent would wait for it without end
                os.kill(other.pid, signal.SIGKILL)
        os._exit(1)  # the main thread waits in a call that does not return
