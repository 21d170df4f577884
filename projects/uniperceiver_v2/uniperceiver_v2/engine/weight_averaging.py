"""An exponential moving average of the weights, which is evaluated and saved as the model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..shards import divided_like, local


class WeightAveraging(HookBase):
    """Averages the model's parameters after every iteration: a ← d·a + (1-d)·θ.

    The decay of update t is min(d, (1+t)/(10+t)), so that the averages forget the random initial weights quickly at the
    start. Buffers are not averaged. The averages are used with the current buffers.

    Args:
        model: the model, without a wrapper for several processes. All ranks hold the same weights, and each averages
            them for itself. Of weights that are divided among ranks, each averages its part.
        decay: d in (0, 1).

    Raises:
        ValueError: the decay is out of its range.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay must be in (0, 1), not {decay}")
        self._named = dict(model.named_parameters())
        self._decay = decay
        self._updates = 0
        self._averages: list[Tensor] | None = None
        # The weights in training, while the model has the averages.
        self._raw: list[Tensor] | None = None

    @property
    def _parameters(self) -> list[Tensor]:
        return [p.detach() for p in self._named.values()]

    def before_train(self) -> None:
        if self._averages is None:
            self._averages = [p.clone() for p in self._parameters]

    @torch.no_grad()
    def after_step(self) -> None:
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_([*map(local, self._averages)], [*map(local, self._parameters)], 1 - decay)
        self._updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model's parameters hold the averages. Afterwards they hold the weights in training
        again.

        Values are copied in place. A cache that checks a parameter's version therefore notices both changes.
        """
        if self._averages is None or self._raw is not None:
            yield
            return
        self._raw = [p.clone() for p in self._parameters]
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(self._raw)
            self._raw = None

    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_([*map(local, self._parameters)], [*map(local, weights)])

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the weights in training. The averages are the checkpoint's "model"."""
        raw = self._parameters if self._raw is None else self._raw
        return {"updates": self._updates, "weights": dict(zip(self._named, raw))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the model's present parameters as the averages, and put the saved weights in training in their place."""
        self._updates = state["updates"]
        self._averages = [p.clone() for p in self._parameters]
        self._put([divided_like(state["weights"][name], p).to(p.device) for name, p in self._named.items()])
