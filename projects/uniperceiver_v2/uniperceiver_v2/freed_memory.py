"""Memory of the process that was freed, and goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Give freed pages of the heap back to the system.

    The GNU C library keeps them for later, because blocks in use lie above them. After an evaluation these were 440 of
    the 1,066 MiB of a small model's training. Does nothing with another C library.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
