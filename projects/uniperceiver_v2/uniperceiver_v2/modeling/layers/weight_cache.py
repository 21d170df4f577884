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
    encoder serves all images. The next step of the optimizer empties the cache.

    These changes empty the cache: a parameter gets new values (a step, a checkpoint, weight averaging), another
    precision or device, or is replaced; a module changes its mode (`train()`, `eval()`), because dropout makes values
    random. Changes of buffers do not.

    While gradients are enabled nothing is kept, and each value is computed anew.

    Each call of `get` reads the state of all parameters, which takes some 0.5 µs for each. A loop over words should
    therefore call it once, before the loop.

    Args:
        modules: all modules on which a value depends.
        capacity: the largest number of values; the oldest makes room for a new one.
    """

    def __init__(self, modules: Sequence[nn.Module], capacity: int = 64):
        self._modules, self._capacity = tuple(modules), capacity
        self._state: list | None = None
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`. `make` computes it if it is not kept."""
        if torch.is_grad_enabled():
            return make()
        state = self.state()
        if state != self._state:
            self._state = state
            self._values.clear()
        if key not in self._values:
            while len(self._values) >= self._capacity:
                del self._values[next(iter(self._values))]
            self._values[key] = make()
        return self._values[key]

    def clear(self) -> None:
        """Drops all values, which frees their memory."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def state(self) -> list:
        """Numbers that differ after any change of a weight or a mode.

        `Module.parameters()` takes three times as long as this loop, because it also makes names and finds duplicates.
        """
        state, modules = [], list(self._modules)
        while modules:
            module = modules.pop()
            if module is None:  # register_module allows it
                continue
            state.append(module.training)
            for parameter in module._parameters.values():
                if parameter is not None:
                    state += parameter.data_ptr(), parameter._version
            modules += module._modules.values()
        return state
