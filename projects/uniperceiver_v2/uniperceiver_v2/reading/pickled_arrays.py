"""Pickles of NumPy arrays, such as those of Detectron2's model zoo, read without running what stands in them.

A pickle names what it calls, and whoever wrote it chooses. Here it may name what NumPy's arrays are made of, and gets
something of ours in its place: NumPy's own functions crash the process if a damaged file calls them with values that
they do not expect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from .pickles import Unpickler

_NUMBERS = {"b1", *(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8))} - {"f1"}


class _Type:
    """In place of `numpy.dtype`: a type of numbers, of either order of bytes."""

    def __init__(self, name: Any, *_: Any):
        if name not in _NUMBERS:
            raise ValueError(f"an array has the type {name!r:.80}, which is none of numbers")
        self._name, self._order = name, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError(f"an array has the order of bytes {state[1]!r:.80}")
        self._order = state[1]

    def numbers(self, content: Any) -> np.ndarray:
        """The numbers in bytes, one after the other, in this machine's order of bytes."""
        if isinstance(content, str):  # of Python 2, read as Latin-1
            content = content.encode("latin1")
        found = np.frombuffer(content, np.dtype(self._name).newbyteorder(self._order))
        return found.astype(self._name)


class _Array:
    """In place of `numpy.ndarray`, which a pickle makes empty and then fills."""

    def __init__(self, *_: Any):
        self.value = np.zeros(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, by_columns, content = state
        self.value = _type(kind).numbers(content).reshape(_shape(shape), order="F" if by_columns else "C")


def _type(value: Any) -> _Type:
    if not isinstance(value, _Type):
        raise ValueError(f"an array has {value!r:.80} in place of its type")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(side) is int and side >= 0 for side in value):
        raise ValueError(f"an array has {value!r:.80} in place of its shape")
    return value


def _scalar(kind: Any, content: Any) -> Any:
    return _type(kind).numbers(content)[0]


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.__setstate__((1, shape, kind, order == "F", content))
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Python 2's bytes, as Python 3 writes them for it."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"it encodes a {type(text).__name__} by {encoding!r:.80}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """In place of `bytes`, which Python writes for empty ones in old protocols."""
    return b""


_OURS: Mapping[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArraysUnpickler(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _OURS[module, name] if (module, name) in _OURS else super().find_class(module, name)


def load_pickled_arrays(file: IO[bytes]) -> Any:
    """What a pickle holds: dicts, lists and plain values as they are, and arrays [...] of numbers, in this machine's
    order of bytes, wherever they stand in dicts.

    Raises:
        Exception: the pickle is damaged, or names anything but arrays. A damaged one ends in whatever its first wrong
            byte leads to; it never runs code.
    """
    return _plain(_ArraysUnpickler(file, encoding="latin1").load())


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
