"""Damage to files: of their bytes, and of the values in them. All of it follows from a random number generator."""

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

# Numbers and other values that programs rarely expect.
EXTREMES = (
    *(0, -1, 1, 2**31, -(2**31), 2**63 - 1, 2**63, 10**9, 10**30, 0.5, -0.0, 1e9, 1e300, 5e-324),
    *(math.nan, math.inf, -math.inf, True, False, None),
    *("", "a", "\0", "../../etc/passwd", "x" * 3000, "\ud800", "1e9", "nan", [], {}, [[]], [None], {"a": 1}, [1, 2, 3]),
)


def flipped(rng: random.Random, content: bytes) -> bytes:
    """With one to eight flipped bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def spliced(rng: random.Random, content: bytes) -> bytes:
    """With a part repeated, removed, moved or replaced by noise."""
    begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    part = content[begin:end]
    noise = rng.randbytes(min(len(part), 64) or 4)
    place = rng.randrange(len(content) + 1)
    return rng.choice(
        (
            content[:begin] + content[end:],
            content[:end] + part[:4096] + content[end:],
            content[:begin] + noise + content[begin + len(noise) :],
            content[:place] + part[:4096] + content[place:],
            content[:begin]
            + rng.choice((b"\0", b"\xff", b"9", b"[", b"{", b'"')) * rng.choice((1, 8, 5000))
            + content[end:],
        )
    )


def resized(rng: random.Random, content: bytes) -> bytes:
    """With two, four or eight bytes in a row replaced by an extreme number, as in a field for a size."""
    width = rng.choice((2, 4, 8))
    number = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 2**15, 2**16 - 1))
    place = rng.randrange(max(len(content) - width, 1))
    return content[:place] + number.to_bytes(width, rng.choice(("little", "big"))) + content[place + width :]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flipped, flipped, cut, spliced, resized)


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """With damage of one kind."""
    return rng.choice(BYTES)(rng, content)


def edited(rng: random.Random, value: Any, extremes: tuple[Any, ...] = EXTREMES) -> Any:
    """A copy of dicts, lists and plain values with one to three edits: a value replaced, removed, renamed or
    repeated."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        owner, key = _place(rng, changed)
        if owner is None:
            return rng.choice(extremes)
        action = rng.randrange(10)
        if action == 0:
            del owner[key]
        elif action == 1 and isinstance(owner, dict):
            owner[rng.choice(("", "a", 3, f"{key}x"))] = owner.pop(key)
        elif action == 2 and isinstance(owner, list):
            owner.extend([owner[key]] * rng.choice((1, 3, 100)))
        elif action == 3 and _is_number(owner[key]):
            owner[key] = owner[key] * rng.choice((-1, 10, 1000, 1e-3))
        else:
            owner[key] = copy.deepcopy(rng.choice(extremes))
    return changed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(rng: random.Random, value: Any) -> tuple[Any, Any]:
    """A dict or list at or below a value, and a key of it. They are found from above, so that a large part of the value
    is no more likely than a small one. (None, None) if there is none."""
    owner = key = None
    while isinstance(value, dict | list) and value and (owner is None or rng.random() < 0.85):
        owner, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = owner[key]
    return owner, key


def damaged_json(rng: random.Random, content: Any) -> bytes:
    """A JSON with edited values, or with damaged bytes."""
    if rng.random() < 0.7:
        return json.dumps(edited(rng, content)).encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, json.dumps(content).encode())
