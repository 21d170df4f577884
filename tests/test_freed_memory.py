"""Freed memory leaves the process."""

import sys
from pathlib import Path

import pytest
import torch

from uniperceiver_v2.freed_memory import give_back_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_freed_blocks_below_one_in_use_go_back_to_the_system():
    size = 2**14  # bytes; larger ones have mappings of their own, which end with them
    blocks = [torch.ones(size, dtype=torch.uint8) for _ in range(10_000)]
    last = blocks[-1]
    del blocks
    before = _resident()
    give_back_freed_memory()
    assert before - _resident() > 100 * 2**20
    assert bool(last.all())


def _resident() -> int:
    """Bytes."""
    kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(kib.split()[1])
