"""Numbers that a forward pass measures beside its losses, such as an accuracy.

In training they travel to the host together with the losses. Elsewhere they go to the event storage at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils.events import get_event_storage
from torch import Tensor

_collected: list[tuple[str, Tensor]] | None = None


@contextmanager
def measured() -> Iterator[list[tuple[str, Tensor]]]:
    """In this context :func:`measure` adds name and number to the list, and nothing waits for the device."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def measure(name: str, value: Tensor) -> None:
    """Give a scalar to the :func:`measured` around, or else to the event storage, which waits for the device."""
    if _collected is None:
        write(name, value.item())
    else:
        _collected.append((name, value))


def write(name: str, value: float) -> None:
    """Put a number into the event storage, unless it is NaN: nothing was there to be measured."""
    if not math.isnan(value):
        get_event_storage().put_scalar(name, value)
