"""The model's side of a task: losses and predictions from inputs and candidates.

There are no task heads, so a task holds settings and no weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..modeling.model import UniPerceiver


class Task(ABC):
    """One task of a model.

    Args:
        settings: an instance of its kind's :class:`~uniperceiver_v2.kinds.TaskSettings`.
    """

    def __init__(self, settings: Any):
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: Any) -> Task:
        """The task of a configuration. Subclasses read further settings from ``cfg`` if they need them."""
        return cls(settings)

    @abstractmethod
    def losses(self, model: UniPerceiver, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """The losses of a batch, scalars that are weighted against each other.

        With several ranks, the mean of the ranks' losses must be the loss of the whole batch (see ``ranks``). A rank's
        collective calls must not depend on its share of the batch, as all ranks have to make the same calls.
        """

    def loss_count(self, inputs: Sequence[Any]) -> int:
        """The number of things over which the losses of a batch are means. These are images by default. It may be 0.

        The trainer weights a part of a batch with max(1, its count) / max(1, the count of all parts). Both counts are
        summed over ranks. A part with a count of 0 has a weight, too: its losses are divided by 1 and still teach the
        background.
        """
        return len(inputs)

    @abstractmethod
    def predict(self, model: UniPerceiver, inputs: Sequence[Any]) -> list[dict]:
        """A prediction for each input."""


def candidate_texts(prompt: str, inputs: Sequence[Any]) -> tuple[str, ...]:
    """The candidate texts of a batch: the names in its first input, each put into the prompt.

    Raises:
        ValueError: the input has no names.
    """
    names = inputs[0].get("candidates")
    if not names:
        raise ValueError('an input needs "candidates", the names to choose from')
    return _prompted(prompt, tuple(names))


@lru_cache(maxsize=64)
def _prompted(prompt: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prompt.format(name) for name in names)


def log_accuracy(name: str, hits: Tensor, count: Tensor | int) -> None:
    """Put the share of ``hits`` among ``count`` into the event storage, or nothing if ``count`` is 0. Waits for the
    device once."""
    accuracy = (hits / count).item()
    if not math.isnan(accuracy):
        get_event_storage().put_scalar(name, accuracy)
