"""A cache of values that depend on weights alone, such as encoded category names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import nn

Value = TypeVar("Value")


class WeightCache:
    """Keeps values that were computed from modules' parameters until a parameter changes.

    For example, the representations of 80 category names are the same for every test image, so one pass of the text
    encoder serves all images. An optimizer's step then empties the cache.

    A change is a new value, loaded weights, another precision or device, a parameter in place of another, or another
    mode (`train()`, `eval()`), as dropout may make the values random. Buffers are not looked at. While gradients are
    enabled nothing is kept: each value is computed anew, with gradients.

    Each call of `get` reads the state of all parameters, some 0.5 µs for each of them. A loop over words therefore asks
    once before it starts, and not for each word.

    Args:
        modules: all modules that a value depends on.
        capacity: the most values that are kept; the oldest goes first.
    """

    def __init__(self, modules: Sequence[nn.Module], capacity: int = 64):
        self._modules, self._capacity = tuple(modules), capacity
        self._state: list | None = None
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, which `make` computes if it is not there."""
        if torch.is_grad_enabled():
            return make()
        state = self._current_state()
        if state != self._state:
            self._state = state
            self._values.clear()
        if key not in self._values:
            while len(self._values) >= self._capacity:
                del self._values[next(iter(self._values))]
            self._values[key] = make()
        return self._values[key]

    def clear(self) -> None:
        """Lets go of all values and their memory."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def _current_state(self) -> list:
        """Differs after a change. The walk is our own because `Module.parameters()`, which also makes names and looks
        for duplicates, takes three times as long."""
        state, modules = [], list(self._modules)
        while modules:
            module = modules.pop()
            if module is None:  # as `register_module` may leave
                continue
            state.append(module.training)
            for parameter in module._parameters.values():
                if parameter is not None:
                    state += parameter.data_ptr(), parameter._version
            modules += module._modules.values()
        return state
