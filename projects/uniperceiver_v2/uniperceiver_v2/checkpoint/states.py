"""Compares a state in a checkpoint with the object that is to take it, before anything is changed."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError


def require_alike(own: Any, given: Any, where: str) -> None:
    """Check that values have the types of those that they replace, and tensors their shapes.

    Otherwise a text in place of a number would be found hours later, or a tensor of one value would be copied to all.
    What only one of the two has is not looked at: a new optimizer has no moments yet.

    Args:
        own: the object's present state.
        given: the state from the file.
        where: the name of the state, for the message.

    Raises:
        UserError: a value differs. The message has its place.
    """
    if isinstance(own, Mapping):
        if not isinstance(given, Mapping):
            raise _unlike(own, given, where)
        for key in own.keys() & given.keys():
            require_alike(own[key], given[key], f"{where}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(given, list | tuple):
            raise _unlike(own, given, where)
        for place, pair in enumerate(zip(own, given)):
            require_alike(*pair, f"{where}.{place}")
    elif isinstance(own, Tensor):
        if not isinstance(given, Tensor) or given.shape != own.shape or given.dtype != own.dtype:
            raise _unlike(own, given, where)
    elif not (own is None or _is_like(own, given)):
        raise _unlike(own, given, where)


def _is_like(own: Any, given: Any) -> bool:
    if type(own) is float:
        return type(given) in (int, float) and (math.isfinite(given) or not math.isfinite(own))
    return type(given) is type(own)


def _unlike(own: Any, given: Any, where: str) -> UserError:
    return UserError(f"its '{where}' is {_described(given)}, not {_described(own)}")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return f"{value!r:.80}" if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
