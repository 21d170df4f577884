"""Checks COCO's compressed run-length encodings without decoding masks.

An encoding is a sequence of run lengths. Runs follow the columns and begin with a run outside the mask. Each number is
written in characters of five bits, low bits first. All characters but the last have the flag 0x20, and the flag 0x10 in
the last one is the sign. From the fourth run on, the number is the difference to the run two before.
"""

from collections.abc import Sequence

import numpy as np

_MOST_DIGITS = 7  # characters of a number: 35 bits


def fit(encodings: Sequence[bytes], areas: np.ndarray) -> bool:
    """Whether every encoding is well-formed, has no negative runs, and has as many pixels as its mask.

    Args:
        encodings: N encodings.
        areas: the number of pixels of each mask, [N].
    """
    if not encodings:
        return True
    lengths = np.array([len(encoding) for encoding in encodings])
    digits = np.frombuffer(b"".join(encodings), dtype=np.uint8).astype(np.int64) - 48  # [B]
    if not lengths.all() or digits.min() < 0 or digits.max() > 63:
        return False
    is_last = (digits & 0x20) == 0
    first_digit = np.cumsum(lengths) - lengths  # the index of each encoding's first digit
    if not is_last[first_digit + lengths - 1].all():
        return False
    written = _numbers(digits, is_last)
    if written is None:
        return False
    counts = np.add.reduceat(is_last.astype(np.int64), first_digit)  # runs of each encoding
    runs = _undo_differences(written, counts)
    if (runs < 0).any():
        return False
    return bool(np.array_equal(np.add.reduceat(runs, np.cumsum(counts) - counts), areas))


def _numbers(digits: np.ndarray, is_last: np.ndarray) -> np.ndarray | None:
    """The signed numbers [R] that are written with the digits [B]. None if one of them is too long."""
    ends = np.flatnonzero(is_last)
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > _MOST_DIGITS:
        return None
    starts = ends - sizes + 1
    place = np.arange(len(digits)) - np.repeat(starts, sizes)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    return values - np.where(digits[ends] & 0x10, 1 << (5 * sizes), 0)


def _undo_differences(written: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Run lengths [R] from the written numbers. ``counts`` has the number of runs of each encoding."""
    runs = written.copy()
    owner = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(written)) - np.repeat(np.cumsum(counts) - counts, counts)
    for parity in (0, 1):  # two chains of differences, over odd and over even runs; the first run belongs to none
        chain = np.flatnonzero((position > 0) & (position % 2 == parity))
        if not len(chain):
            continue
        sums = np.cumsum(written[chain])
        starts = np.flatnonzero(np.diff(owner[chain], prepend=-1))
        before = sums[starts] - written[chain][starts]
        runs[chain] = sums - np.repeat(before, np.diff(starts, append=len(chain)))
    return runs
